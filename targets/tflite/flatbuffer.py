"""The ``.tflite`` file as objects (https://github.com/google-ai-edge/LiteRT/blob/main/tflite/schema/schema.fbs)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

from pipeline.core import TargetError

IDENTIFIER = b"TFL3"


def read_model(content: bytes) -> Any:
    """A ``ModelT``: the whole file as mutable Python objects, constants as NumPy arrays of bytes."""
    return schema.ModelT.InitFromPackedBuf(content, 0)


def serialize(model: Any) -> bytes:
    """The bytes of a ``ModelT``."""
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def write_model(content: bytes, path: Path) -> None:
    """Write a model so that ``path`` only ever holds a complete file, and read it back.

    Raises:
        TargetError: What was read back is not a TFLite model that holds operators.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    written = partial.read_bytes()
    if written[4:8] != IDENTIFIER or not read_model(written).subgraphs[0].operators:
        partial.unlink()
        raise TargetError("the converter wrote no usable model", where=str(path))
    partial.replace(path)


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
