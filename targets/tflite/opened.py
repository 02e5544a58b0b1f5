"""A ``.tflite`` file as it is, whoever wrote it, in LiteRT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core import TargetError, first_line
from pipeline.target import Input
from targets.tflite.interface import read_metadata
from targets.tflite.session import Port, interpreter

if TYPE_CHECKING:
    from pipeline.target import Array

NUMPY_KINDS = "biufS"
"""Truth values, integers, real numbers, and text."""


class TfliteFile:
    """See `pipeline.target.OpenedFile`. Integer inputs and outputs with a scale are given and returned as real values.

    Raises:
        TargetError: LiteRT cannot load the file, or it takes or gives what is no NumPy array.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        if not path.is_file():
            raise TargetError("no such file", where=str(path))
        self._path = path
        with refusals(path, "LiteRT cannot load it"):
            self._interpreter = interpreter(path, threads=threads)
            taken = self._interpreter.get_input_details()
            given = self._interpreter.get_output_details()
            signatures = self._interpreter._get_full_signature_list().values()
        names = {port["index"]: port["name"] for port in (*taken, *given)}
        for signature in signatures:
            names |= {index: name for ports in signature.values() for name, index in ports.items()}
        for port in (*taken, *given):
            if np.dtype(port["dtype"]).kind not in NUMPY_KINDS:
                raise TargetError(f"{names[port['index']]!r} holds {port['dtype'].__name__}", where=str(path))
        described = _described(path, len(taken))
        self.inputs = tuple(
            _input(port, names[port["index"]], facts) for port, facts in zip(taken, described, strict=True)
        )
        self.outputs = tuple(names[port["index"]] for port in given)
        self._inputs = [
            Port(port, channels_last=facts.get("layout") == "nhwc")
            for port, facts in zip(taken, described, strict=True)
        ]
        self._outputs = [Port(port) for port in given]

    def run(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        with refusals(self._path, "LiteRT cannot run it"):
            return self._run([port.encode(values) for port, values in zip(self._inputs, inputs, strict=True)])

    def _run(self, numbers: list[Array]) -> tuple[Array, ...]:
        sizes = {port["index"]: tuple(port["shape"]) for port in self._interpreter.get_input_details()}
        resized = [pair for pair in zip(self._inputs, numbers, strict=True) if sizes[pair[0].index] != pair[1].shape]
        for port, values in resized:
            self._interpreter.resize_tensor_input(port.index, values.shape, strict=True)
        if resized:
            self._interpreter.allocate_tensors()
        for port, values in zip(self._inputs, numbers, strict=True):
            self._interpreter.set_tensor(port.index, values)
        self._interpreter.invoke()
        return tuple(port.decode(self._interpreter.get_tensor(port.index)) for port in self._outputs)


@contextmanager
def refusals(path: Path, problem: str) -> Iterator[None]:
    """What LiteRT raises as one error that names the file."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise TargetError(f"{problem}: {first_line(error)}", where=str(path)) from None


def _described(path: Path, inputs: int) -> list[dict[str, Any]]:
    """What the file says of each input, where edgewright wrote it; nothing otherwise."""
    facts = read_metadata(path)
    if facts is None:
        return [{}] * inputs
    listed: list[dict[str, Any]] = facts["inputs"]
    if len(listed) != inputs:
        raise TargetError(f"describes {len(listed)} inputs, but has {inputs}", where=str(path))
    return listed


def _input(port: dict[str, Any], name: str, facts: dict[str, Any]) -> Input:
    if facts:
        shape = (int(port["shape"][0]), *facts["shape"])
        return Input(name=facts["name"], dtype=facts["dtype"], shape=shape)
    sizes = port["shape_signature"] if len(port["shape_signature"]) == len(port["shape"]) else port["shape"]
    dtype = np.dtype(port["dtype"])
    kind = "float32" if Port(port).quantized else "str" if dtype.kind == "S" else dtype.name
    return Input(name=name, dtype=kind, shape=tuple(None if size < 0 else int(size) for size in sizes))
