"""The types that all modules share: models, tensors, stage records and errors.

Nothing here imports torch: reading a report, printing ``--help`` or refusing a bad recipe must be instant.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, WithJsonSchema, model_validator
from pydantic.json_schema import SkipJsonSchema

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = next((value for index, value in enumerate(values) if value in values[:index]), None)
    if twice is not None:
        raise ValueError(f"{twice!r} is there twice")
    return values


def _named(path: Path) -> Path:
    if path == Path():
        raise ValueError("must name a file")
    return path


Flag = Annotated[bool, Strict()]
Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
"""A finite number; as for the two above, ``"0.5"`` or ``yes`` for ``1`` is refused rather than converted."""
PositiveInt = Annotated[Integer, Field(gt=0)]
Side = Annotated[PositiveInt, Field(le=16_384)]
"""Pixels along one side of an image."""
FilePath = Annotated[Path, AfterValidator(_named)]
Distinct = AfterValidator(_distinct)
"""A tuple in which no value is there twice."""

_SHOWN_NAMES = 20

DType = Literal["float32", "float16", "int64", "int32", "int8", "uint8", "bool"]


class EdgewrightError(Exception):
    """A mistake that the user can correct. The command prints it as one message and exits with code 2.

    Args:
        problem: What is wrong, in one sentence.
        where: The file, and the field inside it, that has to change.
        fix: What to write or run instead.

    >>> print(EdgewrightError("macs_ratio is 3.0", where="recipe.yaml: stages[0].prune", fix="use a ratio in (0, 1]"))
    recipe.yaml: stages[0].prune: macs_ratio is 3.0
      fix: use a ratio in (0, 1]
    """

    def __init__(self, problem: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.problem, self.where, self.fix = problem, where, fix
        text = f"{where}: {problem}" if where else problem
        super().__init__(f"{text}\n  fix: {fix}" if fix else text)


class RecipeError(EdgewrightError):
    """The recipe, or a combination of its parts, cannot be carried out."""


class CheckpointError(EdgewrightError):
    """The model's factory or weights cannot be loaded."""


class DataError(EdgewrightError):
    """A data set is missing, malformed, empty or holds values that cannot be used."""


class StageError(EdgewrightError):
    """A stage cannot process this model, or broke its own contract."""


class TargetError(EdgewrightError):
    """A target cannot lower or run this model."""


class OutputError(EdgewrightError):
    """A file or folder cannot be written: no space, no permission, or something else is in its place."""


def first_line(error: Exception) -> str:
    r"""What an error of another library says, on one line: its first, or its class where it says nothing.

    >>> first_line(ValueError("expected 3 channels\nstack: ...")), first_line(KeyError())
    ('expected 3 channels', 'KeyError')
    """
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """What to add to a message about an unknown name: the nearest of the known ones, or else all of them.

    >>> did_you_mean("conv1", ["conv_1", "fc"]), did_you_mean("x", ["conv_1", "fc"])
    ("did you mean 'conv_1'?", 'there are conv_1, fc')
    """
    names = list(known)
    nearest = difflib.get_close_matches(str(name), names, n=1)
    if nearest:
        return f"did you mean {nearest[0]!r}?"
    shown = ", ".join(names[:_SHOWN_NAMES]) or "none"
    return f"there are {shown}" + (", …" if len(names) > _SHOWN_NAMES else "")


class Record(BaseModel):
    """An immutable part of a report. Keys that a newer version added are kept, not refused."""

    model_config = ConfigDict(frozen=True, extra="allow")


DEFAULT_DROP = 0.01


class MetricInfo(Record):
    """What a metric is called, in which unit it is, and which way is better.

    Attributes:
        title: For headings: ``Top-1 accuracy``.
        unit: ``ratio`` is printed in percent; any other unit stands behind the number; ``""`` is a bare number.
        original_value: The original's value of a metric that compares with the original: its agreement with itself
            is 1. None for a metric that compares with labels.
    """

    name: str
    title: str
    unit: str = "ratio"
    higher_is_better: bool = True
    original_value: float | None = None

    def drop(self, original: float, value: float) -> float:
        """How much worse a value is than the original's, in the metric's unit; negative where it is better.

        >>> MetricInfo(name="mae", title="MAE", unit="m", higher_is_better=False).drop(0.5, 0.75)
        0.25
        """
        return original - value if self.higher_is_better else value - original

    def allowed(self, original: float, max_drop: float | None, max_drop_relative: float | None) -> float:
        """The largest drop that a budget allows, in the metric's unit; by default one percentage point, or 1 %.

        >>> MetricInfo(name="mae", title="MAE", unit="m").allowed(2.0, max_drop=None, max_drop_relative=0.1)
        0.2
        """
        if max_drop is not None:
            return max_drop
        if max_drop_relative is None and self.unit == "ratio":
            return DEFAULT_DROP
        return (DEFAULT_DROP if max_drop_relative is None else max_drop_relative) * abs(original)


class Setting(BaseModel):
    """An immutable part of what a user writes. An unknown key is refused with the nearest valid one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key {key!r}; {did_you_mean(key, cls.model_fields)}")
        return values


OPEN_SIZE = re.compile(r"([A-Za-z_]\w{0,30})(?:\s*<=\s*([1-9]\d{0,9}))?")
"""An open size as it is written: a name, and perhaps the largest size, as in ``seq<=128``."""
_BATCH_NAMES = ("batch", "batch_size", "n", "b", "bs")


class OpenSize(Record):
    """A size of an input that may vary.

    Attributes:
        axis: Of the shape without the batch.
        name: Axes of one name have one size.
        most: The largest size; None where any is allowed.
    """

    axis: int
    name: str
    most: int | None = None


class TensorSpec(Setting):
    """One named input of a model. ``shape`` excludes the batch dimension; its units are elements.

    Attributes:
        open_sizes: Sizes that were written as names in the shape, which then holds the size of the samples; 0 before
            one was read.
    """

    name: str = Field(description="name of the input; one of forward's parameters reaches that parameter")
    shape: Annotated[
        tuple[Integer, ...],
        WithJsonSchema({"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "string"}]}}),
    ] = Field(description="sizes without the batch; a size that may vary has a name: H, or seq<=128")
    dtype: DType = Field("float32", description="type of the input's values")
    open_sizes: SkipJsonSchema[tuple[OpenSize, ...]] = ()
    range: tuple[Integer, Integer] | None = Field(
        None, description="smallest and largest value of an integer input, such as token ids: [0, 30521]"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_open_sizes(cls, values: Any) -> Any:
        """``[3, "H", "seq<=128"]`` as sizes, 0 and the largest, and what is open; other words are left, and refused."""
        shape = values.get("shape") if isinstance(values, dict) else None
        if not isinstance(shape, list | tuple) or not any(isinstance(size, str) for size in shape):
            return values
        matches = {axis: OPEN_SIZE.fullmatch(size.strip()) for axis, size in enumerate(shape) if isinstance(size, str)}
        found = [
            OpenSize(axis=axis, name=match[1], most=int(match[2]) if match[2] else None)
            for axis, match in matches.items()
            if match is not None and match[1].lower() not in _BATCH_NAMES
        ]
        sizes = list(shape)
        for each in found:
            sizes[each.axis] = each.most or 0
        return {**values, "shape": sizes, "open_sizes": found}

    @model_validator(mode="after")
    def _range_is_one(self) -> TensorSpec:
        if self.range is not None:
            least, most = self.range
            if self.dtype.startswith("float"):
                raise ValueError("range: is of integers: remove it, or name the input's dtype, such as int64")
            if least > most:
                raise ValueError(f"range: [{least}, {most}] is empty: give the smallest value first")
        return self

    @property
    def written(self) -> list[int | str]:
        """The shape as a recipe has it, with the names of open sizes."""
        names: dict[int, str] = {each.axis: each.name for each in self.open_sizes}
        return [names.get(axis, size) for axis, size in enumerate(self.shape)]


class Preprocessing(Setting):
    """How stored samples become model inputs: ``(x * scale - mean) / std`` per channel, after resize and crop.

    Applies to floating-point inputs only; token ids and other integers pass through unchanged.
    """

    layout: Literal["auto", "nchw", "nhwc"] = Field(
        "auto", description="order of the axes of stored images; auto reads it from the model's shape"
    )
    exif: Flag = Field(True, description="turn images as their EXIF orientation says")
    resize: tuple[Side, Side] | None = Field(None, description="height, width; bilinear, antialiased")
    letterbox: Number | None = Field(
        None, description="resize keeps an image's proportions, and the rest is filled with this stored value"
    )
    cover: Flag = Field(False, description="resize keeps an image's proportions, and what is too long is cut off")
    crop: tuple[Side, Side] | None = Field(None, description="height, width; taken from the centre")
    sampling_rate: PositiveInt | None = Field(
        None, description="in Hz, of sound files; another is refused; all have to be of one when absent"
    )
    scale: Number = Field(1.0, description="factor of stored values, such as 1/255 as 0.00392156862745098")
    mean: tuple[Number, ...] = Field((), description="subtracted after scale: one value, or one for each channel")
    std: tuple[Annotated[Number, Field(gt=0)], ...] = Field((), description="divides last: one value, or one a channel")

    @model_validator(mode="after")
    def _keeps_the_samples(self) -> Preprocessing:
        if self.scale == 0:
            raise ValueError("scale: 0 makes all samples equal: leave it out, or use 1/255 as 0.00392156862745098")
        if self.letterbox is not None and self.resize is None:
            raise ValueError("letterbox: says how resize works: add resize")
        if self.cover and (self.resize is None or self.letterbox is not None):
            raise ValueError("cover: says how resize works, as letterbox does: give resize, and one of the two")
        for axis, name in enumerate(("height", "width")):
            if self.resize is not None and self.crop is not None and self.crop[axis] > self.resize[axis]:
                raise ValueError(f"crop: its {name} is {self.crop[axis]}, and resize leaves {self.resize[axis]}")
        return self


class SkippedLayer(Record):
    """A layer that a stage did not change, and why."""

    layer: str
    reason: str


class StageRecord(Record):
    """What one stage did to the model.

    Attributes:
        parameters: Elements in all weights and biases after the stage.
        macs: Multiply-accumulates of one sample's forward pass after the stage.
        metrics: The task metric on the evaluation set after the stage, such as ``{"top1": 0.93}``; ratios in [0, 1].
        details: Anything specific to this stage (loss curve, chosen configuration, removed channels …); JSON values.
    """

    stage: str
    config: dict[str, Any]
    duration_s: float = Field(ge=0)
    parameters: int = Field(ge=0)
    macs: int = Field(ge=0)
    metrics: dict[str, float] = {}
    skipped: tuple[SkippedLayer, ...] = ()
    details: dict[str, Any] = {}

    @property
    def summary(self) -> str:
        """What the stage left, on one line.

        >>> StageRecord(stage="prune", config={}, duration_s=1.0, parameters=1200, macs=5000).summary
        'prune: 1,200 parameters, 5,000 MACs'
        """
        held_out = self.details.get("held_out")
        db = held_out.get("sqnr_db") if isinstance(held_out, dict) else None
        follows = f", {db:.1f} dB SQNR on held-out samples" if isinstance(db, float) else ""
        skipped = f", {len(self.skipped)} layers left as they were" if self.skipped else ""
        return f"{self.stage}: {self.parameters:,} parameters, {self.macs:,} MACs{follows}{skipped}"


class Artifact(Record):
    """A file that a device loads, as `Model.export` wrote it.

    Attributes:
        path: A file, or a folder such as ``.mlpackage``.
        size_bytes: Of all its files.
        samples: How many samples it was run on; 0 where nothing here runs it, or the model has seen none.
        outputs_db: How closely each output follows the model that the file was made from: its SQNR in dB; None where
            it is equal.
        notes: What a reader should know: differences and what explains them, operators kept in float …
    """

    target: str
    path: Path
    size_bytes: int
    samples: int = 0
    outputs_db: dict[str, float | None] = {}
    notes: tuple[str, ...] = ()

    @property
    def sqnr_db(self) -> float | None:
        """The least of `outputs_db`: infinite where all are equal, None where the file was not run."""
        values = (math.inf if value is None else value for value in self.outputs_db.values())
        return min(values, default=None)

    def __str__(self) -> str:
        """The path, the size, and what was shown.

        >>> print(Artifact(target="onnx", path=Path("a.onnx"), size_bytes=2048, samples=8, outputs_db={"output": 41.5}))
        a.onnx: 2,048 bytes, 41.5 dB SQNR against the model on 8 samples
        """
        shown = "not run"
        if self.sqnr_db is not None:
            close = "equal to" if math.isinf(self.sqnr_db) else f"{self.sqnr_db:.1f} dB SQNR against"
            shown = f"{close} the model on {self.samples} samples"
        return f"{self.path}: {self.size_bytes:,} bytes, {shown}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Model:
    """A model on its way through the stages.

    The functions of the library make it of a plain module: `from_module`, `load`, `prune`, `distill`, `quantize`.

    Attributes:
        module: The current model, in eval mode. A stage copies it; it never changes its input.
        reference: The FP32 original: the teacher, and the accuracy baseline.
        inputs: Names, shapes without the batch, and dtypes.
        outputs: Names of the outputs, in the order the module returns them.
        classes: Class names, in the order of the logits; empty when the model does not classify.
        preprocessing: How stored samples became inputs; targets that embed or describe it need it.
        recipe_sha256: Of the recipe that asked for the model; empty outside a run.
        quantized: Whether ``module`` is a quantized program (a Q/DQ graph).
        states: Per input that is a state, the output that is its value in the next call.
        dynamic: Per input, axes other than the batch whose size a target keeps variable.
        examples: A few real samples, one tensor ``(N, …)`` per input, on which each step is checked; empty until a
            step has seen samples.
        notes: How the module's own interface was brought into this form; a reader of the report should know.
        history: One record per finished stage, oldest first.
    """

    module: nn.Module
    reference: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...] = ("output",)
    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    recipe_sha256: str = ""
    quantized: bool = False
    states: tuple[tuple[str, str], ...] = ()
    dynamic: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    examples: tuple[Tensor, ...] = field(default=(), repr=False, compare=False)
    notes: tuple[str, ...] = ()
    history: tuple[StageRecord, ...] = field(default=())

    def original(self) -> Model:
        """The model that the pipeline started from: the FP32 reference with an empty history."""
        return replace(self, module=self.reference, quantized=False, history=())

    def after(self, module: nn.Module, record: StageRecord, *, quantized: bool = False) -> Model:
        """This model with a stage's new module and its record added."""
        return replace(self, module=module, quantized=quantized, history=(*self.history, record))

    def export(self, target: str, path: str | Path, config: Setting | None = None) -> Artifact:
        """Write the file of one target to exactly this path, run it, and compare it with this model.

        The file appears complete or not at all, and only where it computes what the model computes.

        Args:
            target: ``onnx``, ``coreml`` or ``tflite``.
            path: Of the artifact itself: ``model.onnx``, ``model.mlpackage`` or ``model.tflite``.
            config: The target's options, such as ``OnnxConfig(cpu="arm")``; its defaults when absent.

        Returns:
            The path, the size in bytes, and what running the file showed: its SQNR in dB.

        Raises:
            OutputError: The path cannot be written.
            TargetError: There is no such target, its package is not installed, the path has another suffix, the target
                cannot hold the model, or the file computes something else.
        """
        # The library stands on an upper floor: it is loaded when it is called, by a name relative to this package.
        library = import_module("..execution.library", __package__)
        artifact: Artifact = library.export_file(self, target, Path(path), config)
        return artifact

    def __repr__(self) -> str:
        """The network, what it takes and gives, and what the stages did to it."""
        kind = "INT8" if self.quantized else "FP32"
        inputs = ", ".join(f"{spec.name} {['N', *spec.written]} {spec.dtype}".replace("'", "") for spec in self.inputs)
        lines = [f"Model: {type(self.reference).__name__}, {kind}: {inputs} -> {', '.join(self.outputs)}"]
        return "\n  ".join([*lines, *(record.summary for record in self.history)])


ModelArtifact = Model
"""The former name of `Model`; an artifact is now always a file that a device loads."""
