"""Running a package: in Core ML on macOS, in the reference interpreter elsewhere."""

from __future__ import annotations

import platform
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from pipeline.core import TargetError, TensorSpec
from pipeline.recipe import CoremlConfig
from pipeline.target import Lowered
from targets.coreml.interpreter import Interpreter
from targets.coreml.interpreter.package import read_package
from targets.coreml.interpreter.program import read_program
from targets.coreml.sdk import coremltools, quiet

if TYPE_CHECKING:
    from pipeline.target import Array


class _NamedSession(Protocol):
    """Cuts a batch into the sizes that the package takes, and passes arrays by name."""

    lowered: Lowered
    batch_sizes: tuple[int, ...]

    @abstractmethod
    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Outputs by name for one batch of a size that the package takes."""

    def run(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """See `pipeline.target.Session.run`."""
        results = []
        start = 0
        for size in chunks(len(inputs[0]), self.batch_sizes):
            part = {
                spec.name: array[start : start + size] for spec, array in zip(self.lowered.inputs, inputs, strict=True)
            }
            outputs = self.predict(part)
            results.append([outputs[name] for name in self.lowered.outputs])
            start += size
        return tuple(np.concatenate(arrays) for arrays in zip(*results, strict=True))


class CoremlSession(_NamedSession):
    """A package loaded by Core ML through coremltools, on macOS."""

    metrics_source: Literal["measured", "reference"] = "measured"

    def __init__(self, lowered: Lowered, config: CoremlConfig) -> None:
        ct = coremltools()
        with quiet():
            unit = ct.ComputeUnit[config.compute_units.upper()]
            self._model = ct.models.MLModel(str(lowered.path), compute_units=unit)
        self.lowered, self.batch_sizes = lowered, batch_sizes(self._model.get_spec().description)
        self.runtime = f"Core ML on macOS {platform.mac_ver()[0]}"
        self.device = f"{platform.processor() or platform.machine()}, compute units {config.compute_units}"

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        given = {
            spec.name: inputs[spec.name].astype(np.float32 if spec.dtype.startswith("float") else np.int32)
            for spec in self.lowered.inputs
        }
        outputs: dict[str, Array] = self._model.predict(given)
        return outputs


class ReferenceSession(_NamedSession):
    """A package run by our own interpreter, which rounds to FP16 wherever the program says FP16."""

    metrics_source: Literal["measured", "reference"] = "reference"

    def __init__(self, lowered: Lowered) -> None:
        self._interpreter = Interpreter(lowered.path, precision="float16")
        self.lowered, self.batch_sizes = lowered, batch_sizes(self._interpreter.description)
        self.runtime = "edgewright reference interpreter"
        self.device = f"{platform.machine()} CPU"

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return self._interpreter.run(inputs)


def batch_sizes(description: Any) -> tuple[int, ...]:
    """The batch sizes that a package says it takes; of a range, its smallest and 32.

    Args:
        description: A ``ModelDescription`` (https://apple.github.io/coremltools/mlmodel/Format/Model.html).
    """
    form = description.input[0].type.multiArrayType
    kind = form.WhichOneof("ShapeFlexibility")
    if kind == "enumeratedShapes":
        return tuple(shape.shape[0] for shape in form.enumeratedShapes.shapes)
    if kind == "shapeRange":
        batch = form.shapeRange.sizeRanges[0]
        return (batch.lowerBound, min(32, batch.upperBound) if batch.upperBound > 0 else 32)
    return (form.shape[0],)


def chunks(count: int, sizes: tuple[int, ...]) -> list[int]:
    """Batch sizes that add up to ``count``, the largest first.

    Raises:
        ValueError: No combination, taken greedily, adds up.

    >>> chunks(70, (1, 32))
    [32, 32, 1, 1, 1, 1, 1, 1]
    """
    taken = []
    for size in sorted(sizes, reverse=True):
        whole, count = divmod(count, size)
        taken += [size] * whole
    if count:
        raise ValueError(f"{count} samples are left over: the model takes batches of {sorted(sizes)}")
    return taken


def read_interface(path: Path) -> Lowered:
    """What a saved package takes and gives. See `pipeline.target.Target.open`."""
    program = read_program(read_package(path))
    inputs = []
    for name, form in program.inputs.items():
        if form.shape is None or None in form.shape[1:]:
            raise TargetError(f"input {name!r} has a dynamic shape", where=str(path))
        dtype = {torch.int32: "int32", torch.float32: "float32"}.get(form.held)
        inputs.append(TensorSpec.model_validate({"name": name, "shape": form.shape[1:], "dtype": dtype}))
    first = next(iter(program.inputs.values())).shape
    return Lowered(
        path=path,
        variant="int8" if "quantize" in program.count_operators() else "fp32",
        inputs=tuple(inputs),
        outputs=program.body.outputs,
        batch_size=first[0] if first else None,
    )
