"""What a deployment target must provide, and the records of what was measured, estimated or skipped on it.

A target turns one program into the file a device loads (`Target.lower`), runs it (`Target.load`) and says which
operators do not run on the accelerator (`Target.placement`). Only ``targets/<name>`` imports that target's SDK.
This module imports no torch.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import ConfigDict, Field, SkipValidation, TypeAdapter

from pipeline.core import Model, Record, TensorSpec

if TYPE_CHECKING:
    from pipeline.core.arrays import Array as Array

Variant = Literal["fp32", "int8", "fp16", "int8_weights", "int8_dynamic", "palettized_6bit", "palettized_4bit"]
"""How an artifact stores and computes numbers. All but the first two are forms that vendors offer, for comparison."""


class Capabilities(Record):
    """What a target can hold, as data: checked against the recipe before the first stage runs.

    Attributes:
        source: The page that says so.
        open_sizes: Whether its files take inputs of other sizes than the samples', where the model does.
    """

    weight_dtypes: tuple[str, ...]
    source: str
    open_sizes: bool = False


class Fallback(Record):
    """Operators of one kind that do not run on the accelerator, or that compute in float, and why."""

    op: str
    count: int
    reason: str


class OperatorTime(Record):
    """How long one operator of a deployed graph takes, by the runtime's own profile: one sample, one thread.

    Attributes:
        share: Of the time of all operators; a ratio.
    """

    op: str
    name: str
    median_ns: int
    share: float


class Placement(Record):
    """Where the operators of one artifact run.

    Attributes:
        operators: All operators in the deployed graph.
        accelerated: How many of them run as integer kernels, in the delegate, or on the accelerator.
        fallback: All others, and those that the accelerator computes in float in an integer model.
        source: What this is known from: a runtime's optimized graph, a compiler's report, or published rules.
        slowest: The operators that take longest, where the runtime reports it.
        before: Where the operators would run if the target had not rewritten the program.
    """

    operators: int
    accelerated: int
    fallback: tuple[Fallback, ...] = ()
    source: str
    slowest: tuple[OperatorTime, ...] = ()
    before: Placement | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """The file a device loads.

    Attributes:
        path: A file, or a folder such as ``.mlpackage``.
        batch_size: The one batch size it takes; None where the batch is dynamic.
        inputs: The original model's inputs, in order.
        pixels: Inputs that are stored as uint8 pixels; what a session is given for them is rounded to such.
        notes: What a reader of the report should know: operators kept in float, encodings chosen …
    """

    path: Path
    variant: Variant
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    batch_size: int | None = None
    pixels: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.stat().st_size for file in files_of(self.path))


def files_of(path: Path) -> tuple[Path, ...]:
    """The files of an artifact, in a fixed order: a folder's, or the file and the weights stored beside it.

    ONNX stores weights that do not fit into one file as ``<file>.data``.
    """
    if path.is_dir():
        return tuple(sorted(file for file in path.rglob("*") if file.is_file()))
    beside = path.with_name(f"{path.name}.data")
    return (path, beside) if beside.is_file() else (path,)


class Verified(Record):
    """What running a target's files showed, right after they were written, on a few real samples.

    Attributes:
        samples: How many.
        original_sqnr_db: How closely the FP32 file follows the original, in dB by output; None where it is equal.
        optimized_sqnr_db: The same of the optimized file and the program that it was made from.
        explained: Differences that the runtime's arithmetic explains, and how that was shown.
    """

    samples: int = Field(ge=1)
    original_sqnr_db: dict[str, float | None]
    optimized_sqnr_db: dict[str, float | None]
    explained: tuple[str, ...] = ()


class Session(Protocol):
    """A loaded artifact. Its inputs and outputs are the float values of the original model's interface.

    Attributes:
        runtime: Name and version of what executes the artifact.
        device: The processor it runs on.
        metrics_source: ``measured`` where the target's own runtime runs it; ``reference`` where our interpreter
            replaces a runtime that is not available here. Its time must never be quoted as the target's latency.
        batch_size: The one batch size it takes; None where it takes any.
    """

    runtime: str
    device: str
    metrics_source: Literal["measured", "reference"]

    @property
    def batch_size(self) -> int | None: ...

    def run(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """Outputs ``(N, …)`` for inputs ``(N, …)``; N is `batch_size`, or any where that is None."""
        ...


def run_in_steps(session: Session, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
    """Outputs ``(N, …)`` for inputs ``(N, …)``, in steps of the session's batch size (the last step is padded)."""
    import numpy as np

    count = len(inputs[0])
    step = session.batch_size or count
    parts = []
    for start in range(0, count, step):
        arrays = tuple(array[start : start + step] for array in inputs)
        missing = step - len(arrays[0])
        if missing:
            arrays = tuple(np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for array in arrays)
        parts.append([output[: step - missing] for output in session.run(arrays)])
    return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))


def run_files(target: Target, files: Sequence[Lowered], inputs: tuple[Array, ...]) -> list[tuple[Array, ...]]:
    """The outputs of several files of a target for the same inputs ``(N, …)``, each loaded with one thread."""
    return [run_in_steps(target.load(lowered, threads=1), inputs) for lowered in files]


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """An input of a file, whoever wrote it.

    Attributes:
        dtype: NumPy's name of its elements; ``str`` for text.
        shape: With the batch. A size is a number, the name of one that varies, or None where it has no name. None in
            place of all sizes: the file, or its runtime, does not say how many there are.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


class OpenedFile(Protocol):
    """A file as it is, whoever wrote it, ready to run.

    Attributes:
        outputs: Their names, as the file has them: empty, equal or odd ones too.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]

    def run(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """Outputs for inputs that have the stated types and shapes; nothing is cut into batches."""
        ...


class Target(Protocol):
    """A runtime that models are deployed to."""

    name: str
    capabilities: Capabilities

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The forms of the original, other than FP32, that the recipe asks to compare with."""
        ...

    def missing_package(self) -> str | None:
        """The extra to install where the SDK for lowering is missing: ``edgewright[onnx]``."""
        ...

    def cannot_run(self) -> str | None:
        """Why artifacts cannot be executed on this machine: "Core ML runs only on macOS". None where they can."""
        ...

    @property
    def may_crash(self) -> bool:
        """Whether files run in native code, which a bad file can bring down together with the whole process."""
        ...

    def lower(self, model: Model, out_dir: Path, *, name: str, variant: Variant | None = None) -> Lowered:
        """Write the artifact ``out_dir/name.<suffix>``, complete or not at all: integers where the model is
        quantized, FP32 otherwise.

        Args:
            variant: One of `variants`, for a float model.

        Raises:
            TargetError: An operator, rank or dtype is not supported on this target.
        """
        ...

    def open(self, path: Path) -> Lowered:
        """An existing artifact, whoever wrote it: its interface is read from the file itself.

        Raises:
            TargetError: The file is missing, or not one of this target's.
        """
        ...

    def open_to_run(self, path: Path, *, threads: int) -> OpenedFile:
        """An existing artifact, whoever wrote it, with whatever types and shapes it has.

        Native code reads the file, and a damaged one may bring the process down: call it in a bounded one.

        Raises:
            TargetError: The file is missing, cannot be loaded, or takes or gives what is no array.
        """
        ...

    def estimates(self, lowered: Lowered) -> tuple[Latency, ...]:
        """Latencies in addition to the session's: predicted by a named method for devices that are not available here,
        measured on other processors of this machine, or skipped with the reason.
        """
        ...

    def load(self, lowered: Lowered, *, threads: int) -> Session:
        """Load the artifact; loading is never timed."""
        ...

    def cross_checks(self, lowered: Lowered, sample: tuple[Array, ...]) -> tuple[Session | Skipped, ...]:
        """Other runtimes or precisions that execute the same artifact here: checks of accuracy, never of time.

        Args:
            sample: One real sample ``(1, …)``, by which a target finds out whether a runtime is too slow.
        """
        ...

    def explain(self, lowered: Lowered, model: Model) -> str | None:
        """How the runtime's arithmetic alone explains that a file's outputs differ from those of the model that it was
        made from, and by which figure that was shown; None where it does not, or nothing here can show it.
        """
        ...

    def placement(self, lowered: Lowered) -> Placement | None:
        """Which operators run accelerated; None where nothing on this machine knows."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What one target made of a model.

    Attributes:
        optimized: The optimized model's artifact; None unless ``status`` is ``ok``.
        original: The FP32 original's artifact, for comparison in the same runtime.
        variants: The original in each other form that was asked for, or why it is missing.
        reason: Why there is no artifact.
        verified: What running the files showed; None where nothing here runs them, or there were no samples.
    """

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)  # a target is not data, and is left out of the JSON

    target: SkipValidation[Target]
    status: Literal["ok", "skipped", "failed"]
    optimized: Lowered | None = None
    original: Lowered | None = None
    variants: dict[Variant, Lowered | str] = field(default_factory=dict)
    reason: str | None = None
    verified: Verified | None = None

    def in_folder(self, folder: Path) -> Exported:
        """The same artifacts, in another folder."""

        def move(item: Lowered) -> Lowered:
            return replace(item, path=folder / item.path.name)

        return replace(
            self,
            optimized=None if self.optimized is None else move(self.optimized),
            original=None if self.original is None else move(self.original),
            variants={name: item if isinstance(item, str) else move(item) for name, item in self.variants.items()},
        )

    def to_json(self) -> bytes:
        """Everything but the target, with paths relative to the artifacts' folder."""
        return _EXPORTED.dump_json(self.in_folder(Path()), exclude={"target"})

    @classmethod
    def from_json(cls, content: bytes, target: Target, folder: Path) -> Exported:
        """What `to_json` wrote, for artifacts of that target in that folder."""
        return _EXPORTED.validate_python({**json.loads(content), "target": target}).in_folder(folder)


_EXPORTED = TypeAdapter(Exported)


class Measured(Record):
    """Latency of one forward pass, measured on this machine. All samples are kept; statistics are derived from them."""

    kind: Literal["measured"] = "measured"
    runtime: str
    device: str
    threads: int
    batch_size: int = 1
    steps: int | None = Field(
        None,
        ge=1,
        description="of a model that keeps states: each sample is the mean of so many steps of a sequence, with the "
        "states of each step given to the next",
    )
    warmup_ns: tuple[int, ...]
    samples_ns: tuple[int, ...] = Field(min_length=1)
    median_ns: int
    p90_ns: int
    p99_ns: int
    speedup_vs_original: float | None = None
    speedup_vs_fp32_same_runtime: float | None = None


class Estimated(Record):
    """Latency that a named method predicts for a device that is not available here.

    Attributes:
        placement: Where the operators would run on that device, if the method reports it.
        figures: What else the method predicts, with units in the names: cycles, memory in bytes …
    """

    kind: Literal["estimated"] = "estimated"
    runtime: str
    device: str
    batch_size: int = 1
    median_ns: int
    method: str
    source: str
    placement: Placement | None = None
    figures: dict[str, float] = {}


class Skipped(Record):
    """A latency or a cross-check that is not available here, and why."""

    kind: Literal["skipped"] = "skipped"
    runtime: str
    device: str
    reason: str


Latency = Annotated[Measured | Estimated | Skipped, Field(discriminator="kind")]


def measured(
    *,
    runtime: str,
    device: str,
    threads: int,
    warmup_ns: tuple[int, ...],
    samples_ns: tuple[int, ...],
    steps: int | None = None,
) -> Measured:
    """A `Measured` record whose statistics come from its samples (percentiles by the inclusive method).

    Args:
        steps: Of the loop that each duration is of; the record's are those of one step.

    >>> record = measured(runtime="r", device="cpu", threads=1, warmup_ns=(900,), samples_ns=(100, 300, 200))
    >>> record.median_ns, record.p90_ns
    (200, 280)
    """
    warmup_ns, samples_ns = (tuple(round(each / (steps or 1)) for each in taken) for taken in (warmup_ns, samples_ns))
    percentiles = (
        statistics.quantiles(samples_ns, n=100, method="inclusive") if len(samples_ns) > 1 else [samples_ns[0]] * 99
    )
    return Measured(
        runtime=runtime,
        device=device,
        threads=threads,
        steps=steps,
        warmup_ns=warmup_ns,
        samples_ns=samples_ns,
        median_ns=round(statistics.median(samples_ns)),
        p90_ns=round(percentiles[89]),
        p99_ns=round(percentiles[98]),
    )
