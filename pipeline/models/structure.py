"""Storage of modules whose layers have changed size: weights and sizes, restored onto the factory's own module.

A file is a plain safetensors file. Its header says, per submodule, which integers set its size (``in_channels``,
``groups``, ``num_features``, ``normalized_shape`` …), and which submodules are `nn.Identity`: a block that was removed
is one. Reading a file runs no code from it: nothing is unpickled.
"""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.core import CheckpointError
from pipeline.core.files import write_bytes

logger = logging.getLogger(__name__)

_KEY = "edgewright.structure"


def save_module(module: nn.Module, path: Path) -> None:
    """Write a module's tensors and the integers that set the sizes of its layers, completely or not at all."""
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[int, str] = {}
    for name, tensor in _tensors(module).items():
        if id(tensor) in names:
            aliases[name] = names[id(tensor)]
        else:
            names[id(tensor)] = name
            kept[name] = tensor.detach().contiguous().clone()
    structure = {
        "sizes": {name: _sizes(part) for name, part in module.named_modules()},
        "aliases": aliases,
        "identities": [name for name, part in module.named_modules() if type(part) is nn.Identity],
    }
    write_bytes(path, save(kept, metadata={_KEY: json.dumps(structure, separators=(",", ":"))}))
    logger.debug("saved %d tensors of %s to %s", len(kept), type(module).__name__, path)


def restore_module(reference: nn.Module, path: Path) -> nn.Module:
    """A copy of ``reference`` with the layer sizes and weights that `save_module` wrote, in eval mode.

    Args:
        reference: A module of the same architecture, of any width: what the factory builds.

    Raises:
        CheckpointError: The file was not written by `save_module`, or belongs to another architecture.
    """
    tensors, structure = _read(path)
    module = copy.deepcopy(reference)
    for name in structure.get("identities", ()):  # files written before blocks could be removed have none
        if name and name in dict(module.named_modules()):
            module.set_submodule(name, nn.Identity())
    parts = dict(module.named_modules())
    missing = structure["sizes"].keys() ^ parts.keys()
    owners = {name: name.rpartition(".") for name in (*tensors, *structure["aliases"])}
    strangers = sorted({*missing, *(name for name, (owner, _, _) in owners.items() if owner not in parts)})
    if strangers:
        raise CheckpointError(
            f"was saved from another architecture than {type(reference).__name__}; they differ in {strangers[0]!r}",
            where=str(path),
        )
    for name, part in parts.items():
        for attribute, size in structure["sizes"][name].items():
            current = getattr(part, attribute, None)
            if isinstance(current, tuple | list):
                size = type(current)(size)
            if current != size:
                setattr(part, attribute, size)
    for name, tensor in tensors.items():
        _put(parts[owners[name][0]], owners[name][2], tensor)
    for alias, name in structure["aliases"].items():
        setattr(parts[owners[alias][0]], owners[alias][2], getattr(parts[owners[name][0]], owners[name][2]))
    return module if _is_program(module) else module.eval()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers under every name they have, non-persistent buffers included."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _sizes(part: nn.Module) -> dict[str, Any]:
    """A submodule's public integers and tuples of integers: everything that can set a layer's size."""

    def is_size(value: object) -> bool:
        if isinstance(value, tuple | list):
            return len(value) > 0 and all(is_size(item) for item in value)
        return isinstance(value, int) and not isinstance(value, bool)

    return {name: value for name, value in vars(part).items() if not name.startswith("_") and is_size(value)}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except FileNotFoundError:
        raise CheckpointError("no such file", where=str(path)) from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"is not a readable safetensors file: {error}", where=str(path)) from None
    if _KEY not in metadata:
        raise CheckpointError("holds weights without a structure", where=str(path), fix="write it with save_module")
    return tensors, json.loads(metadata[_KEY])


def _put(part: nn.Module, name: str, tensor: Tensor) -> None:
    current = getattr(part, name, None)
    if isinstance(current, nn.Parameter):
        setattr(part, name, nn.Parameter(tensor, requires_grad=current.requires_grad))
    else:
        setattr(part, name, tensor)


def _is_program(module: nn.Module) -> bool:
    """Whether this is a graph of torch.export, which has no ``eval()``: its mode is part of the graph."""
    from torch.fx import GraphModule

    return isinstance(module, GraphModule)
