"""Programs that torch.export saved, read so that nothing in the file runs.

``torch.export.load`` unpickles weights, sample inputs and objects, evaluates symbolic sizes and guards as Python code,
imports modules that the file names, and compiles C++ sources in it. Here weights are read as bytes, the JSON parts are
checked field by field (`program_schema`), nothing else of the archive is opened, and torch's deserializer gets only
that. What such a program cannot be read without is refused, by its name.

Format: https://docs.pytorch.org/docs/stable/export/pt2_archive.html
"""

from __future__ import annotations

import json
import math
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._export.serde import schema
from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE, ExportedProgramDeserializer
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from pipeline.core import CheckpointError, first_line
from pipeline.models.expressions import UnsafeProgramError
from pipeline.models.program_schema import read_json

MAX_JSON_BYTES = 1 << 26
MAX_RECORDS = 1_000_000
MAX_REPEATED_BYTES = 1 << 28
"""How much larger than its stored bytes a tensor may be, whose strides repeat them."""

_READ_BYTES = 1 << 24
_VERSION = re.compile(r"\d[\w.+]{0,40}")
_WEIGHTS, _CONSTANTS = "data/weights/", "data/constants/"


def read_program(path: Path) -> tuple[ExportedProgram, GraphModule]:
    """A program that ``torch.export.save`` of torch 2.8 or newer wrote, and the module that runs it.

    Sample inputs are not read: stand-ins of the same shapes and types, of zeros, take their place.

    Raises:
        CheckpointError: The file is damaged, or it holds something that could run code.
    """
    try:
        with zipfile.ZipFile(path) as file:
            archive = _Archive(file, path.stat().st_size)
            program = _deserialize(archive)
        _check_weights(program)
        _check_operators(program)
        return program, program.module()
    except UnsafeProgramError as error:
        raise CheckpointError(
            f"is refused, because it holds {error}",
            where=str(path),
            fix="if you trust its author: model: {trust: true} reads it with torch, which runs code in it",
        ) from None
    except Exception as error:  # a damaged archive fails in zipfile, JSON, SymPy or torch, whichever meets it first
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """The error to raise for a file that cannot be read as a program; it names a torch that is not this one."""
    written_by = _torch_version(path)
    if written_by in ("", torch.__version__):
        return CheckpointError(
            f"is not a torch.export program: {first_line(error)}",
            where=str(path),
            fix="write it with torch.export.save, by this version of torch",
        )
    return CheckpointError(
        f"was written by torch {written_by}, and torch {torch.__version__} cannot read it: {first_line(error)}",
        where=str(path),
        fix=f"write it again with torch {torch.__version__}, or give the Python network and its state dict",
    )


def _torch_version(path: Path) -> str:
    """The torch that wrote a program; empty where the file does not say."""
    try:
        with zipfile.ZipFile(path) as file:
            stated = json.loads(_Archive(file, path.stat().st_size).read("models/model.json"))["torch_version"]
    except Exception:  # a damaged archive fails in many ways
        return ""
    return stated if isinstance(stated, str) and _VERSION.fullmatch(stated) else ""


class _Archive:
    """The records of a ``.pt2``: parts of a zip file, not compressed, under one folder.

    Raises:
        UnsafeProgramError: Records are compressed or overlap, so that a small file would fill the memory, or the
            layout is the one of torch 2.7, whose weights are pickled.
    """

    def __init__(self, file: zipfile.ZipFile, size: int) -> None:
        self._file = file
        records = file.infolist()
        if "serialized_exported_program.json" in file.namelist():
            raise UnsafeProgramError("pickled weights in the layout of torch 2.7 and older")
        if len(records) > MAX_RECORDS or sum(record.file_size for record in records) > size:
            raise UnsafeProgramError("compressed or overlapping records, which may be of any size")
        self._folder = records[0].filename.partition("/")[0]
        if self.read("archive_format") != b"pt2" or self.read("archive_version") != b"0":
            raise ValueError("another archive format or version")
        if self.holds("byteorder") and self.read("byteorder") != b"little":
            raise ValueError("written on a big-endian machine")

    def holds(self, name: str) -> bool:
        return f"{self._folder}/{name}" in self._file.NameToInfo

    def size(self, name: str) -> int:
        return self._file.getinfo(f"{self._folder}/{name}").file_size

    def read(self, name: str) -> bytes:
        if self.size(name) > MAX_JSON_BYTES:
            raise ValueError(f"{name} has more than {MAX_JSON_BYTES} bytes")
        return self._file.read(f"{self._folder}/{name}")

    def read_tensor(self, name: str) -> Tensor:
        """The bytes of a record ``(N,) uint8``, in memory that torch has aligned."""
        data = torch.empty(self.size(name), dtype=torch.uint8)
        with self._file.open(f"{self._folder}/{name}") as record:
            start, memory = 0, data.numpy()
            while part := record.read(_READ_BYTES):
                memory[start : start + len(part)] = np.frombuffer(part, np.uint8)
                start += len(part)
        if start != len(data):
            raise ValueError(f"{name} is truncated")
        return data


def _deserialize(archive: _Archive) -> ExportedProgram:
    """The program named ``model``, which is the one that ``torch.export.save`` writes."""
    for name in (f"{_WEIGHTS}model.pt", f"{_CONSTANTS}model.pt"):
        if archive.holds(name):
            raise UnsafeProgramError(f"the pickled weights {name!r}")
    program = read_json(schema.ExportedProgram, archive.read("models/model.json"))
    weights = read_json(schema.PayloadConfig, archive.read(f"{_WEIGHTS}model_weights_config.json"))
    constants = read_json(schema.PayloadConfig, archive.read(f"{_CONSTANTS}model_constants_config.json"))
    sampled = archive.holds("data/sample_inputs/model.pt") and archive.size("data/sample_inputs/model.pt") > 0
    return ExportedProgramDeserializer().deserialize(
        program,
        _read_tensors(weights, _WEIGHTS, archive),
        _read_tensors(constants, _CONSTANTS, archive),
        _stand_ins(program.graph_module) if sampled else None,
    )


def _read_tensors(config: schema.PayloadConfig, folder: str, archive: _Archive) -> dict[str, Tensor]:
    """Weights or constants by name. Those of one record share its memory, as tied weights do."""
    stored: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for name, payload in config.config.items():
        if payload.use_pickle:
            raise UnsafeProgramError(f"the pickled tensor {name!r}")
        if payload.path_name not in stored:
            stored[payload.path_name] = archive.read_tensor(folder + payload.path_name)
        if payload.tensor_meta is None:
            raise ValueError(f"{name!r} has no shape")
        tensor = _view(stored[payload.path_name], payload.tensor_meta, name)
        requires_grad = payload.tensor_meta.requires_grad
        tensors[name] = (
            nn.Parameter(tensor, requires_grad) if payload.is_param else tensor.requires_grad_(requires_grad)
        )
    return tensors


def _view(data: Tensor, meta: schema.TensorMeta, name: str) -> Tensor:
    """A tensor in the bytes of a record.

    Raises:
        ValueError: It reaches out of them, or repeats them more often than any network does.
    """
    shape, strides = [size.as_int for size in meta.sizes], [stride.as_int for stride in meta.strides]
    offset, dtype = meta.storage_offset.as_int, _SERIALIZE_TO_TORCH_DTYPE[meta.dtype]
    if meta.layout != schema.Layout.Strided or min(*shape, *strides, offset, 0) < 0 or len(shape) != len(strides):
        raise ValueError(f"{name!r} is no dense tensor")
    elements = data.view(dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    count = math.prod(shape)
    if count and (last >= len(elements) or count * dtype.itemsize > len(data) + MAX_REPEATED_BYTES):
        raise ValueError(f"{name!r} of shape {shape} does not fit into {len(data)} bytes")
    return elements.as_strided(shape, strides, offset)


def _stand_ins(module: schema.GraphModule) -> Any:
    """Inputs ``(args, kwargs)`` for the sample inputs of the file: torch names an input in guards by its place there.

    Tensors are zeros that share one element, so their size costs nothing.
    """
    signature = module.module_call_graph[0].signature
    if signature is None:
        raise ValueError("it does not say what its inputs are")
    values = [
        _stand_in(spec.user_input.arg, module.graph)
        if spec.type == "user_input"
        else _constant(spec.constant_input.value)
        for spec in module.signature.input_specs
        if spec.type in ("user_input", "constant_input")
    ]
    return _pytree.tree_unflatten(values, _pytree.treespec_loads(signature.in_spec))


def _stand_in(argument: schema.Argument, graph: schema.Graph) -> Any:
    if argument.type == "as_tensor":
        meta = graph.tensor_values[argument.as_tensor.name]
        shape = [_size(size) for size in meta.sizes]
        return torch.zeros((), dtype=_SERIALIZE_TO_TORCH_DTYPE[meta.dtype]).expand(shape)
    if argument.type == "as_sym_int":
        return _size(graph.sym_int_values[argument.as_sym_int.as_name])
    return None if argument.type == "as_none" else argument.value


def _size(size: schema.SymInt) -> int:
    """The size at export, where it is dynamic."""
    if size.type == "as_int":
        return int(size.as_int)
    return 2 if size.as_expr.hint is None else int(size.as_expr.hint.as_int)


def _constant(value: schema.ConstantValue) -> Any:
    return None if value.type == "as_none" else value.value


def _check_weights(program: ExportedProgram) -> None:
    """Whether every weight has the shape and the type that the graph was made for.

    Raises:
        ValueError: Names the first that has not.
    """
    tensors = program.state_dict | program.constants
    expected = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        if spec.target is not None:
            tensor, meta = tensors[spec.target], expected[spec.arg.name]
            if tensor.shape != meta.shape or tensor.dtype != meta.dtype:
                raise ValueError(f"{spec.target!r} is {_described(tensor)}, and the graph takes {_described(meta)}")


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


_RECURRENT = re.compile(r"aten\.(lstm|gru|rnn_tanh|rnn_relu)\.(input|data)")
_NOT_KNOWN_AHEAD = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    GuardOnDataDependentSymNode,
    UnsupportedOperatorException,
)


def _check_operators(program: ExportedProgram) -> None:
    """Run the graph on tensors without memory, because some kernels trust shapes: an LSTM's crash on wrong weights.

    oneDNN's kernels are left out, since their stand-ins do not compare shapes.

    Raises:
        Exception: Whatever the operator raises that does not fit its inputs.
    """
    with (
        warnings.catch_warnings(action="ignore"),
        torch.backends.mkldnn.flags(enabled=False),
        FakeTensorMode(shape_env=ShapeEnv()),
        _RecurrentLayers(),
        torch.no_grad(),
    ):
        inputs = [_at_export(node.meta["val"]) for node in program.graph.nodes if node.op == "placeholder"]
        try:
            Interpreter(program.graph_module).run(*inputs)
        except _NOT_KNOWN_AHEAD:
            return


class _RecurrentLayers(TorchFunctionMode):
    """Asks of recurrent layers what their kernels do not ask, before they run: those read past the ends of lists."""

    def __torch_function__(self, function: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if _RECURRENT.fullmatch(str(function)):
            names = [argument.name for argument in function._schema.arguments]
            _check_recurrent(dict(zip(names, args, strict=False)) | (kwargs or {}))
        return function(*args, **(kwargs or {}))


def _check_recurrent(arguments: Mapping[str, Any]) -> None:
    """Whether a recurrent layer has as many weights and states as it has layers and directions.

    Raises:
        ValueError: It has not.
    """
    states = arguments["hx"] if isinstance(arguments["hx"], list | tuple) else [arguments["hx"]]
    cells = arguments["num_layers"] * (2 if arguments["bidirectional"] else 1)
    weights = 4 if arguments["has_biases"] else 2
    if len(states) == 2 and states[0].shape[-1] != states[1].shape[-1]:
        weights += 1  # of the projection of an LSTM
    if cells < 1 or len(arguments["params"]) != cells * weights or any(state.shape[0] != cells for state in states):
        raise ValueError("a recurrent layer has another number of weights or states than of layers")


def _at_export(value: Any) -> Any:
    """A tensor or a number of the sizes at export."""
    if isinstance(value, Tensor):
        shape, strides = map(_at_export, value.shape), map(_at_export, value.stride())
        return torch.empty_strided(tuple(shape), tuple(strides), dtype=value.dtype)
    return value.node.hint if isinstance(value, torch.SymInt) else value
