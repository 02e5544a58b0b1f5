"""Working with one deployed file, without a recipe: run it, or see where its operators run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import targets
from pipeline.core import DataError, TargetError, TensorSpec
from pipeline.core.arrays import Array
from pipeline.core.files import atomic_write
from pipeline.data.npz import NpzSource
from pipeline.machine.processor import all_cores
from pipeline.target import Lowered, Placement, Target
from pipeline.tasks.prediction import session_predictor

TARGET_OF = {".onnx": "onnx", ".mlpackage": "coreml", ".tflite": "tflite"}
SAMPLES_AT_ONCE = 64


def open_artifact(path: Path) -> tuple[Target, Lowered]:
    """The target that a file belongs to, by its suffix, and the file's interface.

    Raises:
        TargetError: The suffix belongs to no target, the target is not installed, or the file cannot be read.
    """
    if path.suffix not in TARGET_OF:
        raise TargetError(
            f"suffix {path.suffix!r} belongs to no target", where=str(path), fix=f"give one of {', '.join(TARGET_OF)}"
        )
    target = targets.get(TARGET_OF[path.suffix])
    if extra := target.missing_package():
        raise TargetError(f"target {target.name!r} is not installed", where=str(path), fix=f"pip install '{extra}'")
    return target, target.open(path)


def predict(path: Path, inputs: Path, outputs: Path) -> dict[str, Array]:
    """Run a file in its own runtime: arrays ``(N, …)`` by input name from one npz to another by output name.

    Raises:
        DataError: An array is missing, or does not fit the input of its name.
        TargetError: The file cannot be read, or its runtime is not here.
    """
    target, lowered = open_artifact(path)
    if reason := target.cannot_run():
        raise TargetError(reason, where=str(path))
    arrays = _read(inputs, lowered.inputs)
    run = session_predictor(target.load(lowered, threads=all_cores()))
    count = len(arrays[0])
    parts = [
        run(tuple(torch.from_numpy(array[start : start + SAMPLES_AT_ONCE]) for array in arrays))
        for start in range(0, count, SAMPLES_AT_ONCE)
    ]
    joined = (torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True))
    results = dict(zip(lowered.outputs, joined, strict=True))
    _write(outputs, results)
    return results


def inspect(path: Path) -> Placement:
    """Where the operators of a file run.

    Raises:
        TargetError: The file cannot be read, or nothing here can tell.
    """
    target, lowered = open_artifact(path)
    found = target.placement(lowered)
    if found is None:
        raise TargetError("nothing on this machine knows where its operators run", where=str(path))
    return found


def _read(path: Path, specs: tuple[TensorSpec, ...]) -> tuple[Array, ...]:
    source = NpzSource(path, [spec.name for spec in specs], labels=None)
    stored, _ = source.read(range(len(source)))
    arrays = []
    for spec, array in zip(specs, stored, strict=True):
        if array.shape[1:] != spec.shape or len(array) == 0:
            raise DataError(
                f"array {spec.name!r} has shape {list(array.shape)}, but the model takes {['N', *spec.shape]}",
                where=str(path),
            )
        arrays.append(np.ascontiguousarray(array, dtype=spec.dtype))
    return tuple(arrays)


def _write(path: Path, arrays: dict[str, Array]) -> None:
    with atomic_write(path) as staged, staged.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy takes any name as an array's
