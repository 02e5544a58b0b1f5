"""A ``.keras`` archive of Keras 3 as a network of torch, without Keras: a configuration in JSON and weights in HDF5.

No class that the file names is imported and none of its code runs: layers are looked up in a table (`keras_layers`),
and one that is not there is refused by its name. The HDF5 part is read in a process with limits.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from pipeline.core import CheckpointError, TensorSpec, did_you_mean, first_line
from pipeline.core.arrays import Array
from pipeline.core.bounded import ChildError, run_bounded
from pipeline.models.checkpoints.keras_layers import BUILDERS, OPERATIONS, UnknownLayerError

MAX_CONFIG_BYTES = 1 << 26
MAX_DEPTH = 8
"""Models in models."""
SECONDS = 300
EXTRA = "edgewright[keras]"

_FIX = "write the network in PyTorch, copy the weights into it, and give its factory and state dict"
_SAVE = "save it with Keras 3: model.save('model.keras')"
_MODELS = ("Functional", "Sequential", "Model")

Key = tuple[str, int]
"""A layer, and which of its calls."""


def read_keras(path: Path, inputs: tuple[TensorSpec, ...]) -> tuple[nn.Module, tuple[TensorSpec, ...]]:
    """The network in an archive, in eval mode, and what it takes: images ``(N, C, H, W)``, all else as in Keras.

    Args:
        inputs: What the recipe says that it takes; where that is nothing, the archive says it.

    Raises:
        CheckpointError: It is damaged, or holds a layer that has no equal here.
    """
    where = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("config.json").file_size > MAX_CONFIG_BYTES:
                raise CheckpointError("has a configuration that is too large", where=where, fix=_SAVE)
            if "model.weights.h5" not in archive.namelist():
                raise CheckpointError("is not a model of Keras 3: it holds no weights", where=where, fix=_SAVE)
            config = json.loads(archive.read("config.json"))
        arrays = _arrays(path)
        network = Network(config, {name: np.asarray(value) for name, value in arrays.items()})
        specs = inputs or tuple(_specs(config, where))
    except UnknownLayerError as error:
        raise CheckpointError(f"holds the layer {error}, which has no equal here", where=where, fix=_FIX) from None
    except CheckpointError:
        raise
    except Exception as error:  # a damaged archive fails in zipfile, JSON or a lookup, whichever meets it first
        problem = f"is not a model of Keras 3: {type(error).__name__}: {first_line(error)}"
        raise CheckpointError(problem, where=where, fix=_SAVE) from error
    return network.eval(), specs


def _arrays(path: Path) -> dict[str, Any]:
    memory = (4 << 30) + 4 * path.stat().st_size
    try:
        result: dict[str, Any] = run_bounded(
            read_arrays, str(path), seconds=SECONDS, memory_bytes=memory, where=str(path)
        ).value
    except ChildError as error:
        raise CheckpointError(f"cannot be read: {error.problem}", where=str(path), fix=_SAVE) from None
    return result


def read_arrays(path: str) -> dict[str, Array]:
    """All arrays of an archive's weights, by their paths; runs in a process of its own.

    Raises:
        CheckpointError: There is no h5py, or the weights refer to other files.
    """
    try:
        import h5py
    except ImportError:
        raise CheckpointError("needs h5py to be read", where=path, fix=f"pip install '{EXTRA}'") from None
    found: dict[str, Array] = {}

    def read(group: Any, prefix: str) -> None:
        for name in group:
            link = group.get(name, getlink=True)
            item = group[name] if isinstance(link, h5py.HardLink) else None
            if item is None or (isinstance(item, h5py.Dataset) and (item.external or item.is_virtual)):
                raise CheckpointError("holds weights that are in other files", where=path, fix=_SAVE)
            if isinstance(item, h5py.Dataset):
                found[f"{prefix}{name}"] = np.asarray(item[()])
            else:
                read(item, f"{prefix}{name}/")

    with zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content, "r") as file:
        read(file, "")
    return found


class Network(nn.Module):
    """A model of Keras: its layers, and the order in which they are called.

    Args:
        config: Of the model: its class and its configuration.
        arrays: Its weights, by their paths below it.
    """

    def __init__(self, config: dict[str, Any], arrays: dict[str, Array], depth: int = 0) -> None:
        super().__init__()
        kind = config["class_name"]
        if kind not in _MODELS or depth > MAX_DEPTH:
            raise UnknownLayerError(f"{str(kind)[:60]!r} (a model of a class of its own)")
        layers = config["config"]["layers"]
        self.layers = nn.ModuleDict()
        for entry, path in zip(layers, _paths(layers), strict=True):
            if entry["class_name"] != "InputLayer":
                below = {name.removeprefix(path): array for name, array in arrays.items() if name.startswith(path)}
                key = _key(entry["config"]["name"])
                if key in self.layers:
                    raise UnknownLayerError(f"{str(entry['config']['name'])[:60]!r} (a name like another layer's)")
                self.layers[key] = _built(entry, below, depth)
        if kind == "Sequential":
            self._chain(layers)
        else:
            self._order(config["config"])

    def _chain(self, layers: list[dict[str, Any]]) -> None:
        names = [entry["config"]["name"] for entry in layers if entry["class_name"] != "InputLayer"]
        self.takes: list[Key] = [("", 0)]
        previous: Key = ("", 0)
        self.calls: list[tuple[Key, Any]] = []
        for name in names:
            self.calls.append(((name, 0), (_Reference(previous, 0),)))
            previous = (name, 0)
        self.gives: Any = _Reference(previous, 0)

    def _order(self, config: dict[str, Any]) -> None:
        """The calls of a graph, each behind those whose results it takes."""
        waiting: list[tuple[Key, Any]] = []
        for entry in config["layers"]:
            name = entry.get("name") or entry["config"]["name"]
            waiting += [((name, index), _arguments(node)) for index, node in enumerate(entry["inbound_nodes"])]
        self.takes = [each.key for each in _references(_places(config["input_layers"]))]
        self.gives = _places(config["output_layers"])
        self.calls, known = [], set(self.takes)
        while waiting:
            ready = [call for call in waiting if all(each.key in known for each in _references(call[1]))]
            if not ready:
                raise ValueError("layers wait for each other")
            self.calls += ready
            known |= {key for key, _ in ready}
            waiting = [call for call in waiting if call not in ready]

    def forward(self, *values: Tensor) -> Any:
        results: dict[Key, Any] = dict(zip(self.takes, values, strict=True))
        for key, arguments in self.calls:
            results[key] = self.layers[_key(key[0])](*_resolved(arguments, results))
        return _resolved(self.gives, results)


@dataclass(frozen=True, slots=True)
class _Reference:
    """The result of a call, or one of several."""

    key: Key
    index: int

    def of(self, results: dict[Key, Any]) -> Any:
        """What it stands for."""
        found = results[self.key]
        return found[self.index] if isinstance(found, tuple | list) else found


def _resolved(value: Any, results: dict[Key, Any]) -> Any:
    """Arguments or outputs with what their references stand for."""
    return tree_map_only(_Reference, lambda reference: reference.of(results), value)


def _references(value: Any) -> list[_Reference]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, _Reference)]


def _arguments(node: dict[str, Any]) -> tuple[Any, ...]:
    """What one call takes: tensors as references, numbers as they are. Keyword arguments have to be none."""
    given = {key: value for key, value in node.get("kwargs", {}).items() if value not in (None, False)}
    if given:
        raise UnknownLayerError(f"called with {', '.join(sorted(given))[:60]}")
    return tuple(_argument(value) for value in node["args"])


def _argument(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get("class_name") != "__keras_tensor__":
            raise UnknownLayerError(f"called with a constant ({str(value.get('class_name'))[:60]})")
        name, call, index = value["config"]["keras_history"]
        return _Reference((str(name), int(call)), int(index))
    if isinstance(value, list):
        return tuple(_argument(each) for each in value)
    if value is None or isinstance(value, int | float):
        return value
    raise UnknownLayerError(f"called with {type(value).__name__}")


def _places(value: Any) -> Any:
    """Inputs or outputs of a graph: ``["name", 0, 0]``, in lists or dictionaries."""
    if isinstance(value, dict):
        return {key: _places(each) for key, each in value.items()}
    if len(value) == 3 and isinstance(value[0], str):
        return _Reference((value[0], int(value[1])), int(value[2]))
    return tuple(_places(each) for each in value)


def _built(entry: dict[str, Any], arrays: dict[str, Array], depth: int) -> nn.Module:
    """The module of one layer."""
    kind, config = entry["class_name"], dict(entry["config"])
    called = f"{str(config.get('name'))[:60]!r} ({str(kind)[:60]})"
    if kind in _MODELS:
        return Network(entry, arrays, depth + 1)
    if str(entry.get("module")).startswith("keras.src.ops"):
        if kind not in OPERATIONS:
            raise UnknownLayerError(f"{called}; {did_you_mean(kind, OPERATIONS)}")
        return _Operation(kind)
    if kind not in BUILDERS or str(entry.get("module")).partition(".")[0] != "keras":
        raise UnknownLayerError(f"{called}; {did_you_mean(kind, BUILDERS)}")
    config |= {"build_shape": (entry.get("build_config") or {}).get("input_shape"), "class_name": kind}
    own = {name.removeprefix("vars/").replace("/vars/", "/"): array for name, array in arrays.items()}
    try:
        return BUILDERS[kind](config, own)
    except UnknownLayerError as error:
        raise UnknownLayerError(f"{called} {error}") from None


class _Operation(nn.Module):
    """A function of ``keras.ops``."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, *values: Any) -> Tensor:
        return OPERATIONS[self.kind](*values)


def _paths(layers: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Where the weights of each layer are: Keras numbers the layers of a class."""
    seen: dict[str, int] = {}
    for entry in layers:
        name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", entry["class_name"]))
        name = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
        number = seen[name] = seen.get(name, -1) + 1
        yield f"layers/{name}_{number}/" if number else f"layers/{name}/"


def _key(name: str) -> str:
    """A name that torch takes for a module; no attribute of its dictionaries has one with this end."""
    return re.sub(r"\W", "_", name) + "_" * (name in dir(nn.ModuleDict))


def _specs(config: dict[str, Any], where: str) -> Iterator[TensorSpec]:
    """What the archive says that the network takes."""
    layers = config["config"]["layers"]
    inputs = {entry["config"]["name"]: entry["config"] for entry in layers if entry["class_name"] == "InputLayer"}
    order = (
        [each.key[0] for each in _references(_places(config["config"]["input_layers"]))]
        if "input_layers" in config["config"]
        else list(inputs)
    )
    if not order:
        raise CheckpointError("does not say what it takes", where=where, fix="add model.inputs")
    for name in order:
        shape = inputs[name].get("batch_shape") or inputs[name]["batch_input_shape"]
        sizes = shape[1:] if len(shape) != 4 else [shape[3], shape[1], shape[2]]
        if not all(isinstance(size, int) for size in sizes):
            raise CheckpointError(
                f"leaves sizes of its input open: {sizes}",
                where=where,
                fix="add model.inputs, with sizes or names of sizes",
            )
        plain = re.sub(r"\W", "_", name)
        yield TensorSpec.model_validate(
            {"name": plain if plain[:1].isalpha() else f"x{plain}", "shape": sizes, "dtype": inputs[name]["dtype"]}
        )
