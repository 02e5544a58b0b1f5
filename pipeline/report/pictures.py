"""The pictures of a report: accuracy, size, latency and training curves, with titles and captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from markupsafe import Markup

from pipeline.core import MetricInfo, StageRecord
from pipeline.report import charts, units
from pipeline.report.headline import main_metric, original_metric, variant
from pipeline.report.model import Report, budgets
from pipeline.report.noise import percentile
from pipeline.target import Estimated, Latency, Measured

Side = Literal["before", "after"]
ONE_THREAD, ESTIMATED = "Latency on one thread", "Estimated latency"
FROM_SAMPLES = "One sample. Bar: median. Line: from the 10th to the 90th percentile; an arrow means that it continues."
FROM_METHOD = "One sample. Hatched: estimated, not measured; the table below names the method."


def pictures(report: Report) -> list[tuple[str, Markup, str]]:
    """Title, SVG and caption of accuracy, size and latency."""
    info = main_metric(report)
    name, metric = info.title, info.name
    baseline = original_metric(report)
    after = variant(report)

    accuracy = [_dot("original · FP32 · PyTorch", baseline, "before", info)]
    sizes = [_bar("original · FP32 checkpoint", report.original.size_bytes, "before")]
    for target in report.targets:
        if target.fp32_metrics:
            accuracy.append(_dot(f"{target.target} · FP32", target.fp32_metrics.get(metric), "before", info))
        accuracy.append(_dot(f"{target.target} · {after}", (target.metrics or {}).get(metric), "after", info))
        if target.fp32_artifact:
            sizes.append(_bar(f"{target.target} · FP32", target.fp32_artifact.size_bytes, "before"))
        size = None if target.artifact is None else target.artifact.size_bytes
        sizes.append(_bar(f"{target.target} · {after}", size, "after"))
    drop = budgets(report)[0].max_drop
    allowed = (
        None
        if baseline is None
        else _ascending(baseline, baseline - drop if info.higher_is_better else baseline + drop)
    )
    scale = "The axis does not start at zero. Band: what the budget allows."
    return [
        (
            name,
            Markup(charts.dots(accuracy, info, allowed=allowed, name="accuracy", alt=_spoken(name, accuracy))),
            scale,
        ),
        ("Size", Markup(charts.bars(sizes, name="size", alt=_spoken("Size", sizes))), "Bytes of the file or package."),
        *(
            (heading, Markup(charts.bars(rows, name=f"latency-{index}", alt=_spoken(heading, rows))), caption)
            for index, (heading, rows, caption) in enumerate(_latency_groups(report))
        ),
    ]


def _latency_groups(report: Report) -> Iterator[tuple[str, list[charts.Row], str]]:
    """One picture per number of threads, and one for estimates, each with its own scale."""
    groups: dict[str, list[charts.Row]] = {}
    after = variant(report)
    models: list[tuple[str, Side, tuple[Latency, ...]]] = [("original · FP32", "before", report.original.latency)]
    for target in report.targets:
        models += [(f"{target.target} · FP32", "before", target.fp32_latency)]
        models += [(f"{target.target} · {after}", "after", target.latency)]
    for label, kind, latencies in models:
        for latency in latencies:
            groups.setdefault(_group(latency), []).append(_latency_row(label, latency, kind))
    for heading in sorted(groups, key=lambda heading: (heading == ESTIMATED, heading != ONE_THREAD)):
        yield heading, groups[heading], FROM_METHOD if heading == ESTIMATED else FROM_SAMPLES


def _group(latency: Latency) -> str:
    if isinstance(latency, Measured) and latency.threads != 1:
        return f"Latency on {latency.threads} threads"
    return ESTIMATED if isinstance(latency, Estimated) else ONE_THREAD


def _ascending(one: float, other: float) -> tuple[float, float]:
    return min(one, other), max(one, other)


def _dot(label: str, value: float | None, kind: Side, info: MetricInfo) -> charts.Row:
    if value is None:
        return charts.Row(label=label, value=None, text="not measured", kind="none")
    return charts.Row(label=label, value=value, text=units.metric(value, info), kind=kind)


def _bar(label: str, value: int | None, kind: Side) -> charts.Row:
    if value is None:
        return charts.Row(label=label, value=None, text="no artifact", kind="none")
    return charts.Row(label=label, value=value, text=units.size(value), kind=kind)


def _latency_row(label: str, latency: Latency, kind: Side) -> charts.Row:
    where = f"{label} · {latency.runtime}"
    if isinstance(latency, Measured):
        text = units.milliseconds(latency.median_ns)
        span = (percentile(latency.samples_ns, 10), percentile(latency.samples_ns, 90))
        return charts.Row(label=where, value=latency.median_ns, text=text, kind=kind, span=span)
    if isinstance(latency, Estimated):
        text = f"≈ {units.milliseconds(latency.median_ns)}"
        return charts.Row(label=f"{label} · {latency.device}", value=latency.median_ns, text=text, kind="estimated")
    reason = f"skipped: {latency.reason}"
    fits = len(where) + len(reason) <= charts.CHARACTERS
    return charts.Row(label=where, value=None, text=reason if fits else "skipped, reason above", kind="none")


def training_curve(stage: StageRecord, index: int, info: MetricInfo) -> Markup | None:
    """Loss, and the metric where there is one, over the epochs that a stage recorded; None where it did not train."""
    for log in stage.details.values():
        if not (isinstance(log, list | tuple) and log and all(isinstance(e, dict) and "loss" in e for e in log)):
            continue
        epochs = [float(entry.get("epoch", position)) for position, entry in enumerate(log, start=1)]
        series = [("Loss", epochs, [float(entry["loss"]) for entry in log])]
        metrics = [(epoch, entry.get("metric")) for epoch, entry in zip(epochs, log, strict=True)]
        scale, unit = (100, "%") if info.unit == "ratio" else (1, info.unit)
        known = [(epoch, scale * value) for epoch, value in metrics if value is not None]
        if known:
            title = ", ".join(filter(None, (f"Held-out {info.name}", unit)))
            series.append((title, [epoch for epoch, _ in known], [value for _, value in known]))
        alt = f"Training of {stage.stage} over {len(log)} epochs; the table below has the same figures."
        return Markup(charts.curves(series, x_label="epoch", name=f"training-{index}", alt=alt))
    return None


def _spoken(title: str, rows: Sequence[charts.Row]) -> str:
    """A chart's alternative text: every row's name and value."""
    return f"{title}: " + "; ".join(f"{row.label.replace(' · ', ' ')}, {row.text}" for row in rows)
