"""Digests, which identify stored results and models."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import nn


def weights_sha256(module: nn.Module) -> str:
    """Hash of a module's parameters and buffers, with their names, shapes and dtypes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(repr((name, tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().contiguous().flatten().view(-1).numpy().tobytes())
    return digest.hexdigest()


def key_of(**inputs: Any) -> str:
    """Hash of JSON values: the key of a result that depends on exactly these.

    >>> key_of(a=1, b=[2]) == key_of(b=[2], a=1) != key_of(a=1, b=[3])
    True
    """
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()
