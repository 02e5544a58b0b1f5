"""Digests, which identify stored results and models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core import Model, StageError
from pipeline.models.capture import capture


def weights_sha256(module: nn.Module) -> str:
    """Hash of a module's parameters and buffers, with their names, shapes and dtypes."""
    digest = hashlib.sha256()
    _update(digest, module.state_dict())
    return digest.hexdigest()


def _update(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def program_sha256(model: Model) -> str:
    """Hash of what a model computes: its graph, as torch.export captures it, with all constants.

    Of a model that cannot be captured, the hash of its layers; its code has to be hashed apart.
    """
    try:
        program = capture(model.module, model.inputs, examples=model.examples)
    except StageError:
        return key_of(layers=repr(model.module))
    constants = {name: value for name, value in program.constants.items() if isinstance(value, Tensor)}
    digest = hashlib.sha256(program.graph_module.code.encode())
    _update(digest, constants)
    return digest.hexdigest()


def key_of(**inputs: Any) -> str:
    """Hash of JSON values: the key of a result that depends on exactly these.

    >>> key_of(a=1, b=[2]) == key_of(b=[2], a=1) != key_of(a=1, b=[3])
    True
    """
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()
