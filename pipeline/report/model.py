"""The JSON report, version 1.0: everything that a run measured. Units are part of the names; ratios are in [0, 1].

Fields may be added, but none is renamed or removed, so old reports always load. This package imports no torch.
"""

from __future__ import annotations

from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from pipeline.core import EdgewrightError, MetricInfo, Record, StageRecord
from pipeline.core.files import read_small
from pipeline.target import Latency, Placement, Variant, Verified

Count = Annotated[int, Field(ge=0)]
MAX_BYTES = 1 << 28
"""Of a report's file."""

SCHEMA_VERSION: Literal["1.0"] = "1.0"


class Environment(Record):
    """The machine and the software of a run. Holds no host name, user name or path."""

    packages: dict[str, str]
    cpu: str
    cpu_features: tuple[str, ...] = ()
    cores: Count
    os: str
    python: str


class RunInfo(Record):
    """What was asked for, where and when."""

    id: str
    started_at: datetime
    duration_s: float = Field(ge=0)
    recipe: dict[str, Any]
    environment: Environment
    seeds: dict[str, int]


class DataRecord(Record):
    """One set of samples; the hash covers the preprocessed values and the labels.

    Attributes:
        notes: What a reader has to know of how it was read, such as entries that were passed over.
    """

    name: str
    samples: Count
    sha256: str
    notes: tuple[str, ...] = ()


class OriginalRecord(Record):
    """The FP32 model that everything is compared with. ``size_bytes`` is its checkpoint's."""

    parameters: Count
    macs: Count
    size_bytes: Count
    metrics: dict[str, float]
    latency: tuple[Latency, ...]


class ArtifactRecord(Record):
    """A deployed file; ``path`` is relative to the report."""

    path: str
    size_bytes: Count
    sha256: str


class Parity(Record):
    """How closely a target's outputs follow the quantized program's, on the whole evaluation set.

    Attributes:
        sqnr_db: 10·log10(Σ p² / Σ (p − t)²) in dB over all outputs; None where they are equal.
        max_abs_error: Largest absolute difference of any output value.
        top1_agreement: Share of samples with the same largest output.
    """

    against: Literal["quantized_program"] = "quantized_program"
    sqnr_db: float | None
    max_abs_error: float = Field(ge=0)
    top1_agreement: float | None = Field(ge=0, le=1)


class CrossCheck(Record):
    """The same artifact in another runtime, or at another precision: its accuracy, never its time."""

    runtime: str
    metrics: dict[str, float]
    parity: Parity


class VariantRecord(Record):
    """The original in another form that the vendor's own tools make, for comparison."""

    variant: Variant
    status: Literal["ok", "skipped"]
    reason: str | None = None
    artifact: ArtifactRecord | None = None
    metrics: dict[str, float] | None = None
    metrics_source: Literal["measured", "reference"] | None = None
    latency: tuple[Latency, ...] = ()


class OutputFidelity(Record):
    """How one output follows the original's on the evaluation set.

    Attributes:
        sqnr_db: 10·log10(Σ o² / Σ (o − t)²) in dB; None where they are equal.
        cosine: Between a sample's values and the original's, averaged over samples.
    """

    sqnr_db: float | None
    cosine: float
    max_abs_error: float = Field(ge=0)


Sureness = Literal["met", "exceeded", "unsure"]


class DifferenceRecord(Record):
    """Optimized minus original, in the metric's unit, with its 95 % interval from the same samples.

    Attributes:
        gained, lost: Samples that only the optimized model has right, and only the original; for shares of samples.
        p_value: That a difference this large is chance, two-sided, by the method's exact test; None where it has none.
        verdict: Of the metric's budget; None where it has none.
        enough_samples: About how many would tell, where these do not.
    """

    metric: str
    value: float
    low: float
    high: float
    samples: Count
    method: str
    gained: Count | None = None
    lost: Count | None = None
    p_value: float | None = None
    verdict: Sureness | None = None
    enough_samples: Count | None = None


class TargetRecord(Record):
    """One target's artifact and everything known about it."""

    target: str
    status: Literal["ok", "skipped", "failed"]
    reason: str | None = None
    artifact: ArtifactRecord | None = None
    fp32_artifact: ArtifactRecord | None = None
    metrics: dict[str, float] | None = None
    metrics_source: Literal["measured", "reference"] | None = None
    metrics_skipped: str | None = Field(None, description="why there are no metrics, where there are none")
    fp32_metrics: dict[str, float] | None = None
    differences: tuple[DifferenceRecord, ...] = ()
    fidelity: dict[str, OutputFidelity] | None = Field(None, description="each output against the original's")
    parity: Parity | None = None
    verified: Verified | None = None
    latency: tuple[Latency, ...] = ()
    fp32_latency: tuple[Latency, ...] = ()
    placement: Placement | None = None
    cross_checks: tuple[CrossCheck, ...] = ()
    variants: tuple[VariantRecord, ...] = ()
    notes: tuple[str, ...] = ()


class TaskRecord(Record):
    """What the model is for.

    Attributes:
        metrics: Every metric of the run, the budget's default first.
        note: What a reader has to know of it, such as that no task was asked for.
    """

    name: str
    metrics: tuple[MetricInfo, ...]
    note: str | None = None


class MetricBudget(Record):
    """One metric's budget, in its own unit, and whether each target that was run kept it, as far as can be told."""

    metric: str
    max_drop: float = Field(ge=0)
    unit: str
    verdict: dict[str, Sureness]


class BudgetRecord(Record):
    """The first budget, where its metric is a ratio, and whether each target that was run kept it."""

    metric: str
    max_drop: float = Field(ge=0, le=1)
    met: dict[str, bool]


class BoxRecord(Record):
    """A box in pixels of the sample's image: x1, y1, x2, y2; how sure the model is, or None for a label."""

    corners: tuple[float, float, float, float]
    label: str
    score: float | None = None


class ViewRecord(Record):
    """What a model says of a sample, or its label, on top of the sample's image.

    Attributes:
        overlay: A PNG as large as the image, in base64; None where there is none.
    """

    title: str
    overlay: str | None = None
    boxes: tuple[BoxRecord, ...] = ()


class SampleRecord(Record):
    """A sample of the evaluation set, to be looked at.

    Attributes:
        index: Its position in the set.
        image: Its first input, as a PNG in base64.
    """

    index: Count
    width: Count
    height: Count
    image: str
    views: tuple[ViewRecord, ...]


class FailureRecord(Record):
    """The stage that failed, and why; those behind it did not run, and no target was reached."""

    stage: str
    reason: str


class VerdictRecord(Record):
    """Whether everything that was asked for holds on every target.

    Attributes:
        reasons: What does not hold, then what could not be judged, then which latencies were not measured.
    """

    passed: bool
    reasons: tuple[str, ...]


class Report(Record):
    """One run, from the original to every target."""

    schema_version: Literal["1.0"] = SCHEMA_VERSION
    run: RunInfo
    data: dict[Literal["train", "calibration", "evaluation"], DataRecord]
    original: OriginalRecord
    stages: tuple[StageRecord, ...]
    task: TaskRecord | None = Field(None, description="missing in reports of older versions: classification")
    budget: BudgetRecord | None = Field(None, description="where the first budget is one of a ratio")
    budgets: tuple[MetricBudget, ...] = Field((), description="missing in reports of older versions, which have budget")
    targets: tuple[TargetRecord, ...]
    samples: tuple[SampleRecord, ...] = Field((), description="a few samples as pictures, where the task has some")
    warnings: tuple[str, ...] = Field((), description="what makes the figures doubtful; a page shows it first")
    failure: FailureRecord | None = None
    verdict: VerdictRecord | None = Field(None, description="missing in reports of older versions")

    def _repr_html_(self) -> str:
        """The headline table, which a notebook shows."""
        # What renders a report imports this module: it is loaded when it is called, by a name relative to this one.
        shown: str = import_module(".notebook", __package__).table(self)
        return shown


def metric_info(report: Report, name: str) -> MetricInfo:
    """A metric's title, unit and direction; older reports have ratios of which more is better."""
    known = () if report.task is None else report.task.metrics
    named = {info.name: info for info in (*OLD_METRICS, *known)}
    return named.get(name, MetricInfo(name=name, title=name))


def stage_metric(report: Report, stage: StageRecord) -> MetricInfo:
    """The metric that a stage has chosen by, as its details name it; a ratio where they do not."""
    held_out = stage.details.get("held_out")
    named = held_out.get("metric") if isinstance(held_out, dict) else stage.details.get("metric")
    return metric_info(report, named if isinstance(named, str) else "metric")


OLD_METRICS = (
    MetricInfo(name="top1", title="Top-1 accuracy"),
    MetricInfo(name="agreement", title="Agreement with the original", original_value=1.0),
)


def budgets(report: Report) -> tuple[MetricBudget, ...]:
    """Every budget, also of an older report."""
    if report.budgets or report.budget is None:
        return report.budgets
    old = report.budget
    verdict: dict[str, Sureness] = {name: "met" if met else "exceeded" for name, met in old.met.items()}
    return (MetricBudget(metric=old.metric, max_drop=old.max_drop, unit="ratio", verdict=verdict),)


def read_report(path: Path) -> Report:
    """Read ``report.json``.

    Raises:
        EdgewrightError: The file is missing or unreadable, or is no report of a known version.
    """
    try:
        return Report.model_validate_json(read_small(path, MAX_BYTES))
    except OSError as error:
        problem = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise EdgewrightError(problem, where=str(path), fix="give the path of a report.json") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        problem = f"is not a report: {f'{field}: ' if field else ''}{first['msg']}"
        raise EdgewrightError(problem, where=str(path), fix="give a report.json that edgewright wrote") from None
