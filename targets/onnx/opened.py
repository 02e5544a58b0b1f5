"""An ``.onnx`` file as it is, whoever wrote it, in onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from pipeline.core import TargetError, first_line
from pipeline.target import Input
from targets.onnx.providers import CPU
from targets.onnx.session import session_options

if TYPE_CHECKING:
    from pipeline.target import Array

ELEMENT_TYPES = {
    "float": "float32",
    "double": "float64",
    "string": "str",
    **{name: name for name in ("float16", "bool", "int8", "int16", "int32", "int64")},
    **{name: name for name in ("uint8", "uint16", "uint32", "uint64")},
}
"""NumPy's name of each element type of onnxruntime that it has."""


class OnnxFile:
    """See `pipeline.target.OpenedFile`.

    Raises:
        TargetError: onnxruntime cannot load the file, or it takes or gives what is no NumPy array.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        if not path.is_file():
            raise TargetError("no such file", where=str(path))
        self._path = path
        with refusals(path, "onnxruntime cannot load it"):
            self._session = onnxruntime.InferenceSession(path, session_options(threads), providers=[CPU])
        ports = self._session.get_inputs()
        self.inputs = tuple(input_of(port, path) for port in ports)
        self.outputs = tuple(port.name for port in self._session.get_outputs())
        for port in self._session.get_outputs():
            element_type(port, path)

    def run(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        feeds = {
            taken.name: array.astype(object) if taken.dtype == "str" else array
            for taken, array in zip(self.inputs, inputs, strict=True)
        }
        with refusals(self._path, "onnxruntime cannot run it"):
            outputs = self._session.run(None, feeds)
        return tuple(np.asarray(output) for output in outputs)


def input_of(port: onnxruntime.NodeArg, path: Path) -> Input:
    """An input of a session. onnxruntime tells scalars and tensors of unknown rank alike: ``[]``."""
    return Input(name=port.name, dtype=element_type(port, path), shape=tuple(port.shape) or None)


def element_type(port: onnxruntime.NodeArg, path: Path) -> str:
    """NumPy's name of what a tensor holds.

    Raises:
        TargetError: It is a sequence, a map or an optional value, or its numbers are none of NumPy's.
    """
    kind = port.type.removeprefix("tensor(").removesuffix(")")
    if port.type != f"tensor({kind})":
        fix = "let the model give tensors (a classifier of skl2onnx: zipmap=False)"
        raise TargetError(f"{port.name!r} is a {port.type}, not a tensor", where=str(path), fix=fix)
    if kind not in ELEMENT_TYPES:
        fix = "cast it inside the model, to float32 for example"
        raise TargetError(f"{port.name!r} holds {kind}, which NumPy does not have", where=str(path), fix=fix)
    return ELEMENT_TYPES[kind]


@contextmanager
def refusals(path: Path, problem: str) -> Iterator[None]:
    """Whatever onnxruntime raises as one error that names the file; a lack of memory stays one."""
    try:
        yield
    except (MemoryError, TargetError):
        raise
    except Exception as error:  # onnxruntime has a class of its own for every status code
        if "bad_alloc" in str(error) or "Failed to allocate memory" in str(error):
            raise MemoryError from None
        raise TargetError(f"{problem}: {first_line(error)}", where=str(path)) from None
