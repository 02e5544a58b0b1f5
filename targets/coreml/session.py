"""Running a package: in Core ML on macOS, in the reference interpreter elsewhere."""

from __future__ import annotations

import platform
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from pipeline.core import Preprocessing, TargetError, TensorSpec
from pipeline.data.preprocessing import stored_pixels
from pipeline.target import Lowered
from targets.coreml.interface import PREPROCESSING_KEY
from targets.coreml.interpreter import Interpreter
from targets.coreml.interpreter.execute import Precision, Watch
from targets.coreml.interpreter.package import read_package
from targets.coreml.interpreter.program import read_program
from targets.coreml.sdk import coremltools, quiet

if TYPE_CHECKING:
    from pipeline.target import Array

NUMERIC = ("multiArrayType", "dictionaryType")
"""Kinds of outputs that are arrays; a class label is text."""


class _NamedSession(Protocol):
    """Cuts a batch into the sizes that the package takes, and passes arrays by name.

    The package's own names: the converter replaces what MIL does not allow in a name, such as a space. The order is the
    model's; only a classifier's label and probabilities stand before the model's outputs.
    """

    lowered: Lowered
    description: Any

    @abstractmethod
    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Outputs by name for one batch of a size that the package takes; images are ``(N, C, H, W) uint8``."""

    @property
    def batch_size(self) -> int | None:
        """See `pipeline.target.Session`."""
        return self.lowered.batch_size

    def run(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """See `pipeline.target.Session.run`. Images that are already integers are taken as they are."""
        names = [entry.name for entry in self.description.input]
        given = {name: self._as_pixels(name, array) for name, array in zip(names, inputs, strict=True)}
        stored = numeric_outputs(self.description)[-len(self.lowered.outputs) :]
        results = []
        start = 0
        for size in chunks(len(inputs[0]), batch_sizes(self.description)):
            outputs = self.predict({name: _filled(array[start : start + size], size) for name, array in given.items()})
            left = len(inputs[0]) - start
            results.append([outputs[name][:left] if outputs[name].ndim else outputs[name] for name in stored])
            start += size
        if len(results) == 1:
            return tuple(results[0])
        if any(not array.ndim for array in results[0]):
            raise TargetError(
                "an output without a batch axis cannot be computed in parts",
                where=str(self.lowered.path),
                fix=f"give a batch of {' or '.join(map(str, batch_sizes(self.description)))}",
            )
        return tuple(np.concatenate(arrays) for arrays in zip(*results, strict=True))

    def _as_pixels(self, name: str, array: Array) -> Array:
        if name not in image_names(self.description) or not np.issubdtype(array.dtype, np.floating):
            return array
        stored = self.description.metadata.userDefined.get(PREPROCESSING_KEY)
        preprocessing = Preprocessing.model_validate_json(stored) if stored else Preprocessing()
        return stored_pixels(array, preprocessing)


class CoremlSession(_NamedSession):
    """A package loaded by Core ML through coremltools, on macOS."""

    metrics_source: Literal["measured", "reference"] = "measured"

    def __init__(self, lowered: Lowered, units: str) -> None:
        ct = coremltools()
        with quiet():
            self._model = ct.models.MLModel(str(lowered.path), compute_units=ct.ComputeUnit[units.upper()])
        self.lowered, self.description = lowered, self._model.get_spec().description
        self.runtime = f"Core ML on macOS {platform.mac_ver()[0]}"
        self.device = f"{platform.processor() or platform.machine()}, compute units {units}"

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        outputs = self._model.predict({name: self._given(name, array) for name, array in inputs.items()})
        return {name: as_array(value) for name, value in outputs.items()}

    def _given(self, name: str, array: Array) -> Any:
        if name not in image_names(self.description):
            return array.astype(np.float32 if np.issubdtype(array.dtype, np.floating) else np.int32)
        from PIL import Image

        return Image.fromarray(array[0, 0] if array.shape[1] == 1 else array[0].transpose(1, 2, 0))


class InterpreterSession(_NamedSession):
    """A package run by our own interpreter: in FP16 wherever the program says so, or all in FP32."""

    metrics_source: Literal["measured", "reference"] = "reference"

    def __init__(self, lowered: Lowered, *, precision: Precision = "float16", watch: Watch | None = None) -> None:
        self._interpreter = Interpreter(lowered.path, precision=precision, watch=watch)
        self.lowered, self.description = lowered, self._interpreter.description
        rounding = "each result rounded as the program says" if precision == "float16" else "all in FP32"
        self.runtime = f"edgewright reference interpreter, {rounding}"
        self.device = f"{platform.machine()} CPU"

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return {name: as_array(value) for name, value in self._interpreter.run(inputs).items()}


def _filled(array: Array, size: int) -> Array:
    """A batch of this size; where samples are missing, the last one is repeated."""
    missing = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


def as_array(value: Any) -> Array:
    """An output as an array; of a classifier's dictionary, the probabilities ``(1, classes)``."""
    held = value.item() if isinstance(value, np.ndarray) and value.dtype == object else value
    return np.asarray([list(held.values())], np.float32) if isinstance(held, dict) else np.asarray(held)


def image_names(description: Any) -> frozenset[str]:
    """The inputs that a package takes as images."""
    return frozenset(entry.name for entry in description.input if entry.type.WhichOneof("Type") == "imageType")


def numeric_outputs(description: Any) -> list[str]:
    """The outputs of a package that are arrays, in order."""
    return [entry.name for entry in description.output if entry.type.WhichOneof("Type") in NUMERIC]


def batch_sizes(description: Any) -> tuple[int, ...]:
    """The batch sizes that a package says it takes; of a range, its smallest and 32.

    Args:
        description: A ``ModelDescription`` (https://apple.github.io/coremltools/mlmodel/Format/Model.html).
    """
    if description.input[0].name in image_names(description):
        return (1,)
    form = description.input[0].type.multiArrayType
    kind = form.WhichOneof("ShapeFlexibility")
    if kind == "enumeratedShapes":
        return tuple(shape.shape[0] for shape in form.enumeratedShapes.shapes)
    if kind == "shapeRange":
        batch = form.shapeRange.sizeRanges[0]
        return (batch.lowerBound, min(32, batch.upperBound) if batch.upperBound > 0 else 32)
    return (form.shape[0],)


def chunks(count: int, sizes: tuple[int, ...]) -> list[int]:
    """Batch sizes that hold ``count`` samples, the largest first; the last may hold more than are left.

    >>> chunks(70, (1, 32)), chunks(7, (3, 5))
    ([32, 32, 1, 1, 1, 1, 1, 1], [5, 3])
    """
    taken = []
    for size in sorted(sizes, reverse=True):
        whole, count = divmod(count, size)
        taken += [size] * whole
    return taken + ([min(sizes)] if count else [])


def read_interface(path: Path) -> Lowered:
    """What a saved package takes and gives; images are uint8. See `pipeline.target.Target.open`."""
    package = read_package(path)
    program, description = read_program(package), package.specification.description
    inputs = []
    for name, form in program.inputs.items():
        if form.shape is None or None in form.shape[1:]:
            raise TargetError(f"input {name!r} has a dynamic shape", where=str(path))
        image = name in image_names(description)
        dtype = "uint8" if image else {torch.int32: "int32", torch.float32: "float32"}.get(form.held)
        inputs.append(TensorSpec.model_validate({"name": name, "shape": form.shape[1:], "dtype": dtype}))
    outputs = numeric_outputs(description)
    first = next(iter(program.inputs.values())).shape
    return Lowered(
        path=path,
        variant="int8" if "quantize" in program.count_operators() else "fp32",
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        batch_size=first[0] if first else None,
    )
