"""A state dict: a factory builds the network, and a ``.safetensors`` or ``.pt`` file holds its weights."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipeline.core import CheckpointError, first_line
from pipeline.core.callables import import_callable

_SHOWN_MISMATCHES = 5
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts nest the weights

logger = logging.getLogger(__name__)


def build(factory: str, kwargs: dict[str, Any], weights: Path | None, *, root: Path = Path()) -> nn.Module:
    """A network in eval mode, from its factory; with weights from a file, or the factory's own where there is none.

    Raises:
        CheckpointError: The factory cannot be called so, or the weights are missing, unreadable or another network's.
        RecipeError: The factory cannot be imported.
    """
    try:
        module = import_callable(factory, root)(**kwargs)
    except TypeError as error:
        raise CheckpointError(f"cannot be called with these kwargs: {error}", where=factory) from error
    if not isinstance(module, nn.Module):
        raise CheckpointError(f"returned {type(module).__name__}, not a torch.nn.Module", where=factory)
    if weights is not None:
        if not weights.is_file():
            raise CheckpointError("no such file", where=str(weights), fix="paths are relative to the recipe")
        _fill(module, _read_weights(weights), weights)
    return module.eval()


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"is not a safetensors file: {error}", where=str(path)) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(
            f"holds pickled code, which is never run{f' ({culprit[1]})' if culprit else ''}",
            where=str(path),
            fix="save weights only: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')",
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"is not a torch checkpoint: {first_line(error)}", where=str(path)) from None
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f"holds {type(content).__name__}, not a state dict of tensors",
            where=str(path),
            fix="save weights only: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')",
        )
    return dict(content)


def _fill(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load the weights, all of them and nothing else."""
    expected = module.state_dict()
    for name in expected.keys() - weights.keys():  # a tied weight is stored once, under either of its names
        twin = next((key for key in weights if key in expected and _same_memory(expected[key], expected[name])), None)
        if twin is not None:
            weights[name] = weights[twin]
    problems = [f"missing {name} {_size(expected[name])}" for name in expected if name not in weights]
    problems += [f"unexpected {name} {list(weights[name].shape)}" for name in weights if name not in expected]
    problems += [
        f"{name} is {list(weights[name].shape)} where the factory builds {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and not is_lazy(tensor) and weights[name].shape != tensor.shape
    ]
    problems += [
        f"{name} holds NaN or infinity"
        for name, tensor in weights.items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if problems:
        more = f"; and {len(problems) - _SHOWN_MISMATCHES} more" if len(problems) > _SHOWN_MISMATCHES else ""
        prefixed = bool(weights) and all(name.startswith("module.") for name in weights)
        raise CheckpointError(
            f"does not fit {type(module).__name__}: {'; '.join(problems[:_SHOWN_MISMATCHES])}{more}",
            where=str(path),
            fix="strip DataParallel's 'module.' from the keys"
            if prefixed
            else "give the factory and kwargs that the weights were trained with",
        )
    module.load_state_dict(weights)
    logger.debug("filled %s with %d tensors of %s", type(module).__name__, len(weights), path)


def _size(tensor: Tensor) -> str:
    return "of a lazy layer" if is_lazy(tensor) else str(list(tensor.shape))


def _same_memory(one: Tensor, other: Tensor) -> bool:
    if is_lazy(one) or is_lazy(other):
        return False
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.numel() > 0
