"""A state dict: a factory builds the network, and a ``.safetensors`` or ``.pt`` file holds its weights."""

from __future__ import annotations

import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipeline.core import CheckpointError, first_line
from pipeline.core.callables import call
from pipeline.core.files import require_file

_SHOWN_MISMATCHES = 5
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts nest the weights

logger = logging.getLogger(__name__)


def build(
    factory: str, kwargs: dict[str, Any], weights: Path | None, *, root: Path = Path(), field: str = "kwargs"
) -> nn.Module:
    """A network in eval mode, from its factory; with weights from a file, or the factory's own where there is none.

    Args:
        field: Where in the recipe the kwargs are, for the messages.

    Raises:
        CheckpointError: The factory cannot be called so, or the weights are missing, unreadable or another network's.
        RecipeError: The factory cannot be imported.
    """
    module = call(factory, kwargs, root, field=field, refusal=CheckpointError)
    if not isinstance(module, nn.Module):
        what = module.__name__ if isinstance(module, type) else type(module).__name__
        raise CheckpointError(
            f"returned {'the class ' if isinstance(module, type) else ''}{what}, not a torch.nn.Module",
            where=factory,
            fix="return the network, an instance",
        )
    if weights is not None:
        require_file(weights, CheckpointError)
        _fill(module, _read_weights(weights), weights)
    return module.eval()


_SAVE = "save weights only: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"is not a safetensors file: {error}", where=str(path), fix=_SAVE) from None
    if (kind := _other_kind(path)) is not None:
        raise CheckpointError(f"is {kind}, which may hold code and is never loaded", where=str(path), fix=_SAVE)
    try:
        with warnings.catch_warnings(action="ignore"):  # of versions of pickle: what matters is an error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(
            f"holds pickled code, which is never run ({culprit[1]})"
            if culprit
            else "is not a torch checkpoint, or holds pickled code, which is never run",
            where=str(path),
            fix=_SAVE,
        ) from None
    except Exception as error:  # torch's reader fails in many ways on what is no checkpoint
        raise CheckpointError(f"is not a torch checkpoint: {first_line(error)}", where=str(path), fix=_SAVE) from None
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"holds {type(content).__name__}, not a state dict of tensors", where=str(path), fix=_SAVE
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"is not a state dict of tensors: {name!r} is {type(value).__name__}", where=str(path), fix=_SAVE
            )
    return dict(content)


def _other_kind(path: Path) -> str | None:
    """What a file is that some other framework, or torch's compiler, would load as a whole model."""
    with path.open("rb") as opened:
        if opened.read(len(_HDF5)) == _HDF5:
            return "an HDF5 file, as Keras writes them"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return None  # an old checkpoint, or damaged: torch's reader tells
    if "config.json" in names:
        return "a Keras model"
    return "a TorchScript archive" if any(name.endswith("/constants.pkl") for name in names) else None


_HDF5 = b"\x89HDF\r\n\x1a\n"


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
        f"{name} is {_kind(weights[name])} where the factory builds {_kind(tensor)}"
        for name, tensor in expected.items()
        if name in weights and not is_lazy(tensor) and not _can_become(weights[name].dtype, tensor.dtype)
    ]
    problems += [
        f"{name} holds NaN or infinity"
        for name, tensor in weights.items()
        if name in expected
        and (is_lazy(expected[name]) or tensor.shape == expected[name].shape)  # any other may stand for terabytes
        and tensor.is_floating_point()
        and not torch.isfinite(tensor.float() if tensor.itemsize == 1 else tensor).all()
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


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _can_become(stored: torch.dtype, built: torch.dtype) -> bool:
    """Whether values of one type mean the same as the other: weights that are stored as integers have a scale."""
    return (stored.is_floating_point, stored.is_complex) == (built.is_floating_point, built.is_complex)


def _same_memory(one: Tensor, other: Tensor) -> bool:
    if is_lazy(one) or is_lazy(other):
        return False
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.numel() > 0
