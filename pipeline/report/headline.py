"""The headline of a report: one line a model, and what is missing. A page and a terminal show it first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.core import MetricInfo
from pipeline.report.model import Parity, Report, Sureness, TargetRecord, budgets, metric_info
from pipeline.target import Estimated, Latency, Measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One model in the headline table; None means unknown.

    Attributes:
        metric: The first budget's, on the evaluation set, in its own unit.
        change: The metric minus the original's.
        interval: The ends of the change's 95 % interval.
        latency: One sample on one thread.
        budget: Of all budgets, the worst; None where there is no metric.
    """

    name: str
    detail: str
    status: Literal["original", "ok", "skipped", "failed"]
    metric: float | None
    metric_source: str | None
    change: float | None
    interval: tuple[float, float] | None
    size_bytes: int | None
    latency: Latency | None
    parity: Parity | None
    budget: Sureness | None


def headline(report: Report) -> list[Line]:
    """The original, then every target, as the headline table shows them."""
    original = report.original
    return [
        Line(
            name="original",
            detail=_detail_of("FP32", original.latency),
            status="original",
            metric=original_metric(report),
            metric_source=None,
            change=None,
            interval=None,
            size_bytes=original.size_bytes,
            latency=single_thread(original.latency),
            parity=None,
            budget=None,
        ),
        *(_line(target, report) for target in report.targets),
    ]


def _line(target: TargetRecord, report: Report) -> Line:
    info, baseline = main_metric(report), original_metric(report)
    metric = (target.metrics or {}).get(info.name)
    return Line(
        name=target.target,
        detail=_detail_of(variant(report), target.latency),
        status=target.status,
        metric=metric,
        metric_source=target.metrics_source,
        change=None if metric is None or baseline is None else metric - baseline,
        interval=next(((found.low, found.high) for found in target.differences if found.metric == info.name), None),
        size_bytes=None if target.artifact is None else target.artifact.size_bytes,
        latency=single_thread(target.latency),
        parity=target.parity,
        budget=_worst(report, target.target),
    )


def _detail_of(kind: str, latencies: Sequence[Latency]) -> str:
    """What an artifact is, and what runs it."""
    quoted = single_thread(latencies)
    return f"{kind}, {quoted.runtime}" if isinstance(quoted, Measured) else kind


def reasons(report: Report) -> Iterator[tuple[str, str]]:
    """Everything that was skipped or failed, with the reason, in the order of the targets."""
    for target in report.targets:
        if target.status != "ok":
            yield f"{target.target} {target.status}", target.reason or "no reason was recorded"
        if target.metrics_skipped:
            yield f"{target.target} metrics", target.metrics_skipped
        for latency in (*target.fp32_latency, *target.latency):
            if latency.kind == "skipped":
                yield f"{target.target} latency, {latency.runtime}, {latency.device}", latency.reason


def _worst(report: Report, target: str) -> Sureness | None:
    """A target's verdict on all budgets together."""
    found = [budget.verdict[target] for budget in budgets(report) if target in budget.verdict]
    order: tuple[Sureness, ...] = ("exceeded", "unsure", "met")
    return next((verdict for verdict in order if verdict in found), None)


def main_metric(report: Report) -> MetricInfo:
    """The first budget's metric, which the headline shows."""
    return metric_info(report, budgets(report)[0].metric)


def original_metric(report: Report) -> float | None:
    """The original's value of the headline's metric."""
    info = main_metric(report)
    return report.original.metrics.get(info.name, info.original_value)


def variant(report: Report) -> str:
    """The number format of the targets' artifacts."""
    return "INT8" if any(stage.stage == "quantize" for stage in report.stages) else "optimized, FP32"


def single_thread(latencies: Sequence[Latency]) -> Latency | None:
    """The latency that a headline quotes: measured on one thread, else estimated, else why there is none."""
    measured = [latency for latency in latencies if isinstance(latency, Measured) and latency.threads == 1]
    estimated = [latency for latency in latencies if isinstance(latency, Estimated)]
    return next(iter((*measured, *estimated, *latencies)), None)


def timed_steps(report: Report) -> int | None:
    """How many steps of a sequence each latency is the mean of; None where it is that of a single call."""
    return next((latency.steps for latency in report.original.latency if isinstance(latency, Measured)), None)
