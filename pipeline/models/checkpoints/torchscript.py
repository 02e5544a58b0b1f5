"""A TorchScript archive: torch's own converter makes a ``torch.export`` program of it, in a process of its own.

Loading an archive may run code in it: a class with ``__setstate__`` does what it says there, such as writing a file
(``torch.save``). So the archive's code is read as text first, and what could reach outside is refused. The process that
loads it has limits, and only a program comes back, which is read like any ``.pt2``.
"""

from __future__ import annotations

import io
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree

from pipeline.core import CheckpointError, TensorSpec, first_line
from pipeline.core.arrays import Array
from pipeline.core.bounded import ChildError, run_bounded
from pipeline.models.capture import UNLIKE, example_inputs, plain_kernels
from pipeline.models.exported_program import read_program

SECONDS = 600
MEMORY_BYTES = 8 << 30
MAX_CODE_BYTES = 1 << 26
TOLERANCE = 1e-4
"""Largest difference of the program, relative to the largest value of the outputs."""

_REACHES_OUT = re.compile(
    r"\b__setstate__\b|\btorch\.(?:save|load|from_file|classes)\b|\bops\.(?!aten\b|prim\b)\w+|\b__del__\b"
)
"""What runs when an archive is loaded, or reaches files or code outside it."""

_FIX = "give the Python network and its state dict, or a program that torch.export.save wrote"


def read_torchscript(path: Path, inputs: tuple[TensorSpec, ...]) -> ExportedProgram:
    """The program that an archive computes.

    Args:
        inputs: What it takes; the archive does not say.

    Raises:
        CheckpointError: It is damaged, its code reaches outside, or torch cannot convert it exactly.
    """
    _require_closed(path)
    where = str(path)
    if not inputs:
        fix = "add model.inputs: [{name: image, shape: [3, 224, 224]}] (shapes without the batch)"
        raise CheckpointError("is TorchScript, which does not say what its inputs are", where=where, fix=fix)
    if any(0 in spec.shape for spec in inputs):
        fix = "write sizes in model.inputs, or give the Python network"
        raise CheckpointError("is TorchScript, which is converted for sizes that are known", where=where, fix=fix)
    specs = [spec.model_dump() for spec in inputs]
    memory = max(MEMORY_BYTES, 8 * path.stat().st_size)
    try:
        result = run_bounded(convert, where, specs, seconds=SECONDS, memory_bytes=memory, where=where)
    except ChildError as error:
        raise CheckpointError(f"cannot be read: {error.problem}", where=where, fix=_FIX) from None
    with tempfile.TemporaryDirectory(prefix="edgewright-") as folder:
        program = Path(folder) / "converted.pt2"
        program.write_bytes(result.value.tobytes())
        try:
            return read_program(program)[0]
        except CheckpointError as error:
            raise CheckpointError(error.problem, where=where, fix=_FIX) from None


def _require_closed(path: Path) -> None:
    """Refuse an archive whose code reaches outside, by its text."""
    try:
        with zipfile.ZipFile(path) as archive:
            code = [entry for entry in archive.infolist() if "/code/" in entry.filename]
            if sum(entry.file_size for entry in code) > MAX_CODE_BYTES:
                raise CheckpointError("holds too much code", where=str(path), fix=_FIX)
            texts = [archive.read(entry).decode(errors="replace") for entry in code if entry.filename.endswith(".py")]
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        problem = f"is a damaged TorchScript archive: {first_line(error)}"
        raise CheckpointError(problem, where=str(path), fix="save it again") from None
    found = next((match for text in texts if (match := _REACHES_OUT.search(text))), None)
    if found is not None:
        problem = f"is refused, because its code holds {found[0]}, which may run when it is loaded or reach outside"
        raise CheckpointError(problem, where=str(path), fix=_FIX)


def convert(path: str, specs: list[dict[str, Any]]) -> Array:
    """The bytes of a ``.pt2`` with what an archive computes; runs in a process of its own.

    Raises:
        CheckpointError: torch cannot load or convert it, or the program differs from it.
    """
    inputs = tuple(TensorSpec.model_validate(spec) for spec in specs)
    try:
        module = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]  # torch's own
    except Exception as error:  # torch's reader fails in many ways on a damaged archive
        problem = f"is not a TorchScript archive that this torch can load: {first_line(error)}"
        raise CheckpointError(problem, where=path, fix=_FIX) from None
    module.float()  # a half network is float32 here, as every other is
    try:
        with torch.no_grad():
            module(*example_inputs(inputs))
    except Exception as error:
        shapes = ", ".join(f"{spec.name} {[1, *spec.shape]} {spec.dtype}" for spec in inputs)
        problem = f"fails on {shapes}: {str(error).strip().splitlines()[-1]}"
        raise CheckpointError(problem, where=path, fix="correct model.inputs, in the order of forward") from None
    buffer = io.BytesIO()
    torch.export.save(_program(module, inputs, path), buffer)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def _program(module: Any, inputs: tuple[TensorSpec, ...], path: str) -> ExportedProgram:
    """The first conversion that computes what the archive does: for any number of samples, or for one at a time."""
    problem = ""
    for convert_it, batch in ((_converted, UNLIKE), (_converted, 1), (_recorded, 1)):
        try:
            with torch.no_grad():
                program = convert_it(module, example_inputs(inputs, batch))
                follows = _follows(program, module, inputs, alone=batch == 1)
        except Exception as error:  # the converter raises whatever it meets
            problem = problem or first_line(error)
            continue
        if follows:
            return program
        problem = problem or "the program that it becomes computes something else"
    raise CheckpointError(f"is TorchScript that torch cannot convert: {problem}", where=path, fix=_FIX)


def _converted(module: Any, values: tuple[Tensor, ...]) -> ExportedProgram:
    """By torch's converter, which takes what was traced, and what was scripted without branches and loops."""
    from torch._export.converter import TS2EPConverter

    return _with_plain_outputs(TS2EPConverter(module, values).convert())


def _recorded(module: Any, values: tuple[Tensor, ...]) -> ExportedProgram:
    """By the operators that run for these values; a branch or loop that depends on values cannot be recorded."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with plain_kernels(), torch.enable_grad():  # with gradients, attention runs as known operators
        graph = make_fx(lambda *given: module(*given))(*values)
        return torch.export.export(graph, values, strict=False)


def _follows(program: ExportedProgram, module: Any, inputs: tuple[TensorSpec, ...], *, alone: bool) -> bool:
    """Whether the two give the same for three samples, one by one, and together where that is possible."""
    three = example_inputs(inputs, 3)
    calls = [tuple(value[index : index + 1] for value in three) for index in range(3)]
    for values in calls if alone else [*calls, three]:
        expected, found = (_pytree.tree_leaves(result) for result in (module(*values), program.module()(*values)))
        if len(expected) != len(found) or not all(map(_alike, expected, found)):
            return False
    return True


def _alike(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return bool(one == other)
    if one.shape != other.shape:
        return False
    one, other = one.double(), other.double()
    largest = float(one[one.isfinite()].abs().max()) if one.isfinite().any() else 0.0
    return torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE * largest, equal_nan=True)


def _with_plain_outputs(program: ExportedProgram) -> ExportedProgram:
    """The program with lists and dictionaries as outputs; the converter leaves types of its own there."""
    signature = program.module_call_graph[0].signature
    if signature is not None and signature.out_spec is not None:
        result = _pytree.tree_unflatten(list(range(signature.out_spec.num_leaves)), signature.out_spec)
        signature.out_spec = _pytree.tree_structure(_plain(result))
    return program


def _plain(result: Any) -> Any:
    if isinstance(result, dict):
        return {key: _plain(value) for key, value in result.items()}
    if isinstance(result, tuple | list):
        return [_plain(value) for value in result] if isinstance(result, list) else tuple(map(_plain, result))
    return result
