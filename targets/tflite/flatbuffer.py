"""The ``.tflite`` file as objects (https://github.com/google-ai-edge/LiteRT/blob/main/tflite/schema/schema.fbs)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from pipeline.core import TargetError
from pipeline.core.files import atomic_write

IDENTIFIER = b"TFL3"


def read_model(content: bytes) -> Any:
    """A ``ModelT``: the whole file as mutable Python objects, constants as NumPy arrays of bytes."""
    return schema.ModelT.InitFromPackedBuf(content, 0)


def serialize(model: Any) -> bytes:
    """The bytes of a ``ModelT``."""
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def write_model(content: bytes, path: Path, *, verify: Callable[[Path], None] = lambda _: None) -> None:
    """Write a model so that ``path`` only ever holds a complete and verified file.

    Args:
        verify: Gets the file under a temporary name, and raises if it is unusable.

    Raises:
        TargetError: What was read back is not a TFLite model that holds operators.
    """
    with atomic_write(path) as staged:
        staged.write_bytes(content)
        written = staged.read_bytes()
        if written[4:8] != IDENTIFIER or not read_model(written).subgraphs[0].operators:
            raise TargetError("the converter wrote no usable model", where=path.name)
        verify(staged)


@cache
def _names(enumeration: str) -> dict[int, str]:
    values = vars(getattr(schema, enumeration))
    return {value: name for name, value in values.items() if not name.startswith("_")}


def operator_name(model: Any, operator: Any) -> str:
    """``CONV_2D``; the custom name for custom operators."""
    code = model.operatorCodes[operator.opcodeIndex]
    if code.builtinCode == schema.BuiltinOperator.CUSTOM:
        return str(code.customCode.decode())
    return _names("BuiltinOperator")[code.builtinCode]


def dtype_name(tensor: Any) -> str:
    """``INT8``, ``FLOAT32`` …"""
    return _names("TensorType")[tensor.type]


def add_tensor_like(graph: Any, index: int, *, shape: list[int] | None = None, dtype: str | None = None) -> int:
    """Index of a new tensor like the one at ``index`` except for what is given; uint8 keeps the real values of int8."""
    like = graph.tensors[index]
    tensor = schema.TensorT()
    tensor.shape = [int(size) for size in like.shape] if shape is None else shape
    tensor.name, tensor.buffer = like.name + b"_" + (dtype or "nchw").encode(), 0
    tensor.type = like.type if dtype is None else getattr(schema.TensorType, dtype.upper())
    if dtype != "float32":
        tensor.quantization = schema.QuantizationParametersT()
        if like.quantization is not None and like.quantization.scale is not None:
            tensor.quantization.scale = list(like.quantization.scale)
            offset = 128 if dtype == "uint8" else 0
            tensor.quantization.zeroPoint = [int(zero) + offset for zero in like.quantization.zeroPoint]
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def add_constant(model: Any, values: Any) -> int:
    """Index of a new int32 tensor that holds ``values``."""
    tensor = schema.TensorT()
    tensor.shape, tensor.name, tensor.type = list(values.shape), b"constant", schema.TensorType.INT32
    tensor.buffer = add_buffer(model, values.astype(np.int32).tobytes())
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def int32_values(model: Any, index: int) -> Any:
    """Values of an int32 constant; empty where the tensor is computed."""
    data = model.buffers[model.subgraphs[0].tensors[index].buffer].data
    return np.asarray([] if data is None else data, np.uint8).view(np.int32)


def add_buffer(model: Any, content: bytes) -> int:
    """Index of a new buffer."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(content, np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def new_operator(model: Any, name: str, inputs: list[int], output: int) -> Any:
    """An operator of that kind, which the caller puts into the graph."""
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = inputs, [output]
    operator.opcodeIndex = len(model.operatorCodes)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
    code.version = 2  # the first that takes int8
    model.operatorCodes.append(code)
    return operator


def drop_unused_tensors(model: Any) -> None:
    """Remove the tensors that no operator touches any more; tools that walk all tensors fail on them."""
    graph = model.subgraphs[0]
    touched = {*graph.inputs, *graph.outputs}.union(*((*step.inputs, *step.outputs) for step in graph.operators))
    kept = sorted(int(index) for index in touched if index >= 0)
    renumbered = {index: position for position, index in enumerate(kept)} | {-1: -1}  # -1 is an input left out
    graph.tensors = [graph.tensors[index] for index in kept]
    for holder in (graph, *graph.operators):
        holder.inputs = [renumbered[int(index)] for index in holder.inputs]
        holder.outputs = [renumbered[int(index)] for index in holder.outputs]
    for port in (*model.signatureDefs[0].inputs, *model.signatureDefs[0].outputs):
        port.tensorIndex = renumbered[int(port.tensorIndex)]
