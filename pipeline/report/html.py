"""The report as one HTML file that needs nothing else: no network, no script, no font, and no clock or machine either.

Same report in, same bytes out. All text is escaped by the template engine; only our own SVG and CSS are not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from pipeline.core import StageRecord
from pipeline.report import charts, units
from pipeline.report.model import Parity, Report, TargetRecord
from pipeline.report.noise import NOISY, spread, unstable
from pipeline.target import Estimated, Latency, Measured

Tone = Literal["good", "bad", "open"]
Kind = Literal["before", "after"]
METRIC_NAMES = {"top1": "Top-1 accuracy", "agreement": "Agreement with the original"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One model in the headline table; None stands for what is not known.

    Attributes:
        metric: Of the budget, on the evaluation set; a ratio.
        drop: Original's metric minus this one's; a ratio.
        latency: One sample on one thread.
        within_budget: None where the metric could not be had.
    """

    name: str
    detail: str
    status: Literal["original", "ok", "skipped", "failed"]
    metric: float | None
    metric_source: str | None
    drop: float | None
    size_bytes: int | None
    latency: Latency | None
    parity: Parity | None
    within_budget: bool | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The one sentence a reader takes away, and whether it is good news."""

    tone: Tone
    sentence: str


def render(report: Report) -> str:
    """The whole page.

    Args:
        report: A run's report, of any version that `pipeline.report.model.read_report` reads.
    """
    return page_template("report.html.j2").render(
        report=report,
        lines=headline(report),
        verdict=verdict(report),
        reasons=list(reasons(report)),
        unstable=unstable(report),
        noisy=NOISY,
        spread=spread,
        metric_name=metric_name(report.budget.metric),
        variant=variant(report),
        pictures=pictures(report),
        training=training_curve,
        details=details,
    )


def page_template(name: str) -> Template:
    """A template of this package, with the units as filters; everything it is given is escaped."""
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        by_name=lambda value, name: units.by_name(name, value),
        bytes=units.size,
        heading=units.heading,
        milliseconds=units.milliseconds,
        percent=units.percent,
        points=units.points,
        quantity=units.quantity,
        seconds=units.seconds,
        significant=units.significant,
        times=units.times,
        setting=as_setting,
        yaml=as_yaml,
    )
    return environment.get_template(name)


def as_yaml(value: Any) -> str:
    """JSON values as YAML, innermost lists on one line.

    >>> print(as_yaml({"name": "a", "shape": [1, 28, 28]}))
    name: a
    shape: [1, 28, 28]
    """
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)).rstrip()


def as_setting(value: Any) -> str:
    """One setting on one line, written as in a recipe.

    >>> as_setting(["minmax", "mse"]), as_setting(True), as_setting(0.0005)
    ('[minmax, mse]', 'true', '0.0005')
    """
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return str(text).removesuffix("\n").removesuffix("\n...")


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
            drop=None,
            size_bytes=original.size_bytes,
            latency=single_thread(original.latency),
            parity=None,
            within_budget=None,
        ),
        *(_line(target, report) for target in report.targets),
    ]


def _line(target: TargetRecord, report: Report) -> Line:
    metric, baseline = (target.metrics or {}).get(report.budget.metric), original_metric(report)
    return Line(
        name=target.target,
        detail=_detail_of(variant(report), target.latency),
        status=target.status,
        metric=metric,
        metric_source=target.metrics_source,
        drop=None if metric is None or baseline is None else baseline - metric,
        size_bytes=_size(target),
        latency=single_thread(target.latency),
        parity=target.parity,
        within_budget=report.budget.met.get(target.target),
    )


def _detail_of(kind: str, latencies: Sequence[Latency]) -> str:
    """What an artifact is, and what runs it."""
    quoted = single_thread(latencies)
    return f"{kind}, {quoted.runtime}" if isinstance(quoted, Measured) else kind


def _size(target: TargetRecord) -> int | None:
    return None if target.artifact is None else target.artifact.size_bytes


def verdict(report: Report) -> Verdict:
    """Whether every target met the accuracy budget, and which did not or could not be judged."""
    met = report.budget.met
    allowed = f"the allowed drop of {units.points(report.budget.max_drop).lstrip('+')}"
    kept, exceeded = ([name for name, within in met.items() if within is wanted] for wanted in (True, False))
    failed = [target.target for target in report.targets if target.status == "failed"]
    unjudged = [target.target for target in report.targets if target.target not in {*met, *failed}]
    sentences = (
        f"Accuracy budget exceeded on {_listed(exceeded)}: more than {allowed}." if exceeded else None,
        f"Accuracy budget met on {_listed(kept)}: within {allowed}." if kept else None,
        f"Failed: {_listed(failed)}." if failed else None,
        f"Not judged here: {_listed(unjudged)}." if unjudged else None,
        None if report.targets else "The recipe names no target.",
    )
    tone: Tone = "bad" if exceeded or failed else "good" if kept else "open"
    return Verdict(tone, " ".join(filter(None, sentences)))


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


def original_metric(report: Report) -> float | None:
    """The original's value of the budget's metric; it agrees with itself everywhere."""
    return report.original.metrics.get(report.budget.metric, 1.0 if report.budget.metric == "agreement" else None)


def metric_name(metric: str) -> str:
    """A metric as a heading."""
    return METRIC_NAMES.get(metric, metric)


def variant(report: Report) -> str:
    """What the targets' artifacts are."""
    return "INT8" if any(stage.stage == "quantize" for stage in report.stages) else "optimized, FP32"


def single_thread(latencies: Sequence[Latency]) -> Latency | None:
    """The latency that a headline quotes: measured on one thread, else estimated, else why there is none."""
    measured = [latency for latency in latencies if isinstance(latency, Measured) and latency.threads == 1]
    estimated = [latency for latency in latencies if isinstance(latency, Estimated)]
    return next(iter((*measured, *estimated, *latencies)), None)


def pictures(report: Report) -> list[tuple[str, Markup, str]]:
    """Title, SVG and caption of accuracy, size and latency."""
    name, metric = metric_name(report.budget.metric), report.budget.metric
    baseline = original_metric(report)
    after = variant(report)

    accuracy = [_dot("original · FP32 · PyTorch", baseline, "before")]
    sizes = [_bar("original · FP32 checkpoint", report.original.size_bytes, "before")]
    for target in report.targets:
        if target.fp32_metrics:
            accuracy.append(_dot(f"{target.target} · FP32", target.fp32_metrics.get(metric), "before"))
        accuracy.append(_dot(f"{target.target} · {after}", (target.metrics or {}).get(metric), "after"))
        if target.fp32_artifact:
            sizes.append(_bar(f"{target.target} · FP32", target.fp32_artifact.size_bytes, "before"))
        sizes.append(_bar(f"{target.target} · {after}", _size(target), "after"))
    allowed = None if baseline is None else (baseline - report.budget.max_drop, baseline)
    cut_out = "The scale is a cut-out. Band: what the budget allows."
    return [
        (name, Markup(charts.dots(accuracy, allowed=allowed, name="accuracy", alt=_spoken(name, accuracy))), cut_out),
        ("Size", Markup(charts.bars(sizes, name="size", alt=_spoken("Size", sizes))), "Bytes of the file or package."),
        *(
            (heading, Markup(charts.bars(rows, name=f"latency-{index}", alt=_spoken(heading, rows))), caption)
            for index, (heading, rows, caption) in enumerate(_latency_groups(report))
        ),
    ]


def _latency_groups(report: Report) -> Iterator[tuple[str, list[charts.Row], str]]:
    """One picture per number of threads, and one for estimates: they share no scale."""
    groups: dict[str, list[charts.Row]] = {}
    after = variant(report)
    models: list[tuple[str, Kind, tuple[Latency, ...]]] = [("original · FP32", "before", report.original.latency)]
    for target in report.targets:
        models += [(f"{target.target} · FP32", "before", target.fp32_latency)]
        models += [(f"{target.target} · {after}", "after", target.latency)]
    for label, kind, latencies in models:
        for latency in latencies:
            groups.setdefault(_group(latency), []).append(_latency_row(label, latency, kind))
    for heading in sorted(groups, key=lambda heading: (heading == ESTIMATED, heading != ONE_THREAD)):
        yield heading, groups[heading], FROM_METHOD if heading == ESTIMATED else FROM_SAMPLES


ONE_THREAD, ESTIMATED = "Latency on one thread", "Estimated latency"
FROM_SAMPLES = "One sample. Bar: median. Line: from the 10th to the 90th percentile; an arrow where it goes on."
FROM_METHOD = "One sample. Hatched: estimated, not measured; the method stands in the table below."


def _group(latency: Latency) -> str:
    if isinstance(latency, Measured) and latency.threads != 1:
        return f"Latency on {latency.threads} threads"
    return ESTIMATED if isinstance(latency, Estimated) else ONE_THREAD


def _dot(label: str, value: float | None, kind: Kind) -> charts.Row:
    if value is None:
        return charts.Row(label=label, value=None, text="not measured", kind="none")
    return charts.Row(label=label, value=value, text=units.percent(value), kind=kind)


def _bar(label: str, value: int | None, kind: Kind) -> charts.Row:
    if value is None:
        return charts.Row(label=label, value=None, text="no artifact", kind="none")
    return charts.Row(label=label, value=value, text=units.size(value), kind=kind)


def _latency_row(label: str, latency: Latency, kind: Kind) -> charts.Row:
    where = f"{label} · {latency.runtime}"
    if isinstance(latency, Measured):
        text = units.milliseconds(latency.median_ns)
        span = (percentile(latency.samples_ns, 10), percentile(latency.samples_ns, 90))
        return charts.Row(label=where, value=latency.median_ns, text=text, kind=kind, span=span)
    if isinstance(latency, Estimated):
        text = f"≈ {units.milliseconds(latency.median_ns)} estimated"
        return charts.Row(label=f"{where} · {latency.device}", value=latency.median_ns, text=text, kind="estimated")
    reason = f"skipped: {latency.reason}"
    fits = len(where) + len(reason) <= charts.CHARACTERS
    return charts.Row(label=where, value=None, text=reason if fits else "skipped, reason above", kind="none")


def percentile(samples: Sequence[int], rank: int) -> float:
    """The inclusive percentile, interpolated between neighbours.

    >>> percentile([100, 200, 300], 10)
    120.0
    """
    position = (len(samples) - 1) * rank / 100
    low, ordered = int(position), sorted(samples)
    high = min(low + 1, len(samples) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def training_curve(stage: StageRecord, index: int) -> Markup | None:
    """Loss, and the metric where there is one, over the epochs that a stage recorded; None where it did not train."""
    for log in stage.details.values():
        if not (isinstance(log, list | tuple) and log and all(isinstance(e, dict) and "loss" in e for e in log)):
            continue
        epochs = [float(entry.get("epoch", position)) for position, entry in enumerate(log, start=1)]
        series = [("Loss", epochs, [float(entry["loss"]) for entry in log])]
        metrics = [(epoch, entry.get("metric")) for epoch, entry in zip(epochs, log, strict=True)]
        known = [(epoch, 100 * value) for epoch, value in metrics if value is not None]
        if known:
            series.append(("Held-out metric, %", [epoch for epoch, _ in known], [value for _, value in known]))
        alt = f"Training of {stage.stage} over {len(log)} epochs; the same figures stand in the table below."
        return Markup(charts.curves(series, x_label="epoch", name=f"training-{index}", alt=alt))
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """What a stage alone knows, ready to print: a single text, or a table.

    Attributes:
        numbers: Which columns hold nothing but numbers.
    """

    name: str
    text: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    numbers: tuple[bool, ...] = ()


def details(values: dict[str, Any]) -> list[Detail]:
    """A stage's details by their shape: scalars and short lists as text, records and mappings as tables."""
    return [_detail(name, value) for name, value in values.items()]


def _detail(name: str, value: Any) -> Detail:
    title = units.heading(name)
    if isinstance(value, list | tuple) and value and all(isinstance(entry, dict) for entry in value):
        columns = tuple(dict.fromkeys(key for entry in value for key in entry))
        rows = tuple(tuple(cell(key, entry.get(key)) for key in columns) for entry in value)
        numbers = tuple(_numeric([entry.get(key) for entry in value]) for key in columns)
        return Detail(name=title, columns=tuple(map(units.heading, columns)), rows=rows, numbers=numbers)
    if isinstance(value, dict) and value:
        if len(value) <= 6 and not any(isinstance(entry, dict | list | tuple) for entry in value.values()):
            return Detail(name=title, text=cell(name, value))
        entries = {key: entry if isinstance(entry, dict) else {"value": entry} for key, entry in value.items()}
        inner = tuple(dict.fromkeys(key for entry in entries.values() for key in entry))
        rows = tuple((key, *(cell(column, entry.get(column)) for column in inner)) for key, entry in entries.items())
        numbers = (False, *(_numeric([entry.get(column) for entry in entries.values()]) for column in inner))
        return Detail(name=title, columns=("name", *map(units.heading, inner)), rows=rows, numbers=numbers)
    return Detail(name=title, text=cell(name, value))


def _numeric(values: Sequence[Any]) -> bool:
    return all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values)


def cell(name: str, value: Any) -> str:
    """Any JSON value on one line."""
    if not isinstance(value, dict | list | tuple):
        return units.by_name(name, value)
    entries = value.values() if isinstance(value, dict) else value
    if any(isinstance(entry, dict | list | tuple) for entry in entries):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "; ".join(f"{units.heading(key)}: {cell(key, entry)}" for key, entry in value.items()) or "–"
    return ", ".join(units.by_name(name, entry) for entry in value) or "–"


def _listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _spoken(title: str, rows: Sequence[charts.Row]) -> str:
    """A chart's alternative text: every row's name and value."""
    return f"{title}: " + "; ".join(f"{row.label.replace(' · ', ' ')}, {row.text}" for row in rows)
