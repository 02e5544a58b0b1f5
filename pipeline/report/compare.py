"""Two reports side by side: what got better, what got worse, and what cannot be compared.

Accuracy and size are exact, so small tolerances suffice. Latency is not: a change counts when it exceeds both the
tolerance and the medians' confidence intervals, after correction for the drift of the machine. The original in PyTorch
shows that drift: it is the same program in both runs and was timed in turns with every candidate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from pipeline.core import MetricInfo, Record, Setting
from pipeline.report import units
from pipeline.report.html import page_template
from pipeline.report.model import DifferenceRecord, Report, TargetRecord, budgets, metric_info
from pipeline.report.noise import NOISY, median_uncertainty, spread
from pipeline.target import Estimated, Latency, Measured

Outcome = Literal["better", "worse", "same", "incomparable"]
Tolerance = Annotated[float, Field(ge=0)]


class Tolerances(Setting):
    """How much worse a run may be before it counts as a regression.

    Attributes:
        metric: Of a ratio: 0.001 is 0.1 percentage points (10 of 10,000 samples). Of any other metric: relative.
        size: Relative growth of artifacts, parameters and multiply-accumulates.
        latency: Relative growth of a median, corrected for the machine's drift.
        sqnr_db: Loss of parity in dB.
    """

    metric: Tolerance = 0.001
    size: Tolerance = 0.01
    latency: Tolerance = NOISY
    sqnr_db: Tolerance = 1.0


class Change(Record):
    """One figure in both reports; its name says its unit. None means unknown or, for an SQNR, no noise at all."""

    subject: str
    quantity: str
    before: int | float | str | None
    after: int | float | str | None
    verdict: Outcome
    note: str = ""
    metric: MetricInfo | None = Field(None, description="of a task's metric: its unit and direction")


class ReportComparison(Record):
    """What changed from one report to another.

    Attributes:
        caveats: Differences between the runs that affect every figure.
    """

    before: str
    after: str
    caveats: tuple[str, ...]
    changes: tuple[Change, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        """What got worse by more than its tolerance."""
        return tuple(change for change in self.changes if change.verdict == "worse")


def compare(before: Report, after: Report, tolerances: Tolerances | None = None) -> ReportComparison:
    """Compare every figure that two reports share; a target that only one of them has is listed as such."""
    limits = tolerances or Tolerances()
    old, new = ({target.target: target for target in report.targets} for report in (before, after))
    changes = [*_model_changes(before, after, limits)]
    for name in dict.fromkeys((*old, *new)):
        changes += _target_changes(name, old.get(name), new.get(name), before, after, limits)
    return ReportComparison(
        before=before.run.id, after=after.run.id, caveats=_caveats(before, after), changes=tuple(changes)
    )


def render_html(comparison: ReportComparison) -> str:
    """The comparison as one self-contained page."""
    return page_template("compare.html.j2").render(comparison=comparison, rows=_printed(comparison))


def render_text(comparison: ReportComparison) -> str:
    """The comparison as a plain table for a terminal or a CI log."""
    table = [("", "", "before", "after", "change", ""), *_printed(comparison)]
    widths = [max(len(row[column]) for row in table) for column in range(5)]
    lines = [
        f"before: {comparison.before}",
        f"after:  {comparison.after}",
        *(f"note:   {caveat}" for caveat in comparison.caveats),
        "",
        *(
            f"{subject:<{widths[0]}}  {name:<{widths[1]}}  {old:>{widths[2]}}  {new:>{widths[3]}}  "
            f"{change:>{widths[4]}}  {verdict}".rstrip()
            for subject, name, old, new, change, verdict in table
        ),
        "",
        f"{len(comparison.regressions)} regression{'' if len(comparison.regressions) == 1 else 's'}",
    ]
    return "\n".join(lines)


def _model_changes(before: Report, after: Report, limits: Tolerances) -> Iterator[Change]:
    """The optimized model itself, and the original's accuracy, which should not move at all."""
    same_data = _same_data(before, after)
    for metric, first, second in _pairs(before.original.metrics, after.original.metrics):
        yield _metric_change("original", metric_info(after, metric), first, second, same_data, limits.metric)
    if before.stages and after.stages:
        old, new = before.stages[-1], after.stages[-1]
        for quantity in ("parameters", "macs"):
            yield _relative("model", quantity, getattr(old, quantity), getattr(new, quantity), limits.size)


def _target_changes(
    name: str,
    old: TargetRecord | None,
    new: TargetRecord | None,
    before: Report,
    after: Report,
    limits: Tolerances,
) -> Iterator[Change]:
    was, now = (record.status if record is not None else "absent" for record in (old, new))
    if old is None or new is None or was != now:
        lost = was == "ok" and now == "failed"
        gained = was == "failed" and now == "ok"
        verdict: Outcome = "worse" if lost else "better" if gained else "incomparable"
        note = (new.reason or "") if new is not None else "not in the newer run"
        yield Change(subject=name, quantity="status", before=was, after=now, verdict=verdict, note=note)
    if old is None or new is None:
        return
    for metric, first, second in _pairs(old.metrics or {}, new.metrics or {}):
        noise = math.hypot(*(_half_width(record.differences, metric) for record in (old, new)))
        info, same_data = metric_info(after, metric), _same_data(before, after)
        yield _metric_change(name, info, first, second, same_data, limits.metric, noise)
    yield from _budget_changes(name, before, after)
    if old.artifact and new.artifact:
        yield _relative(name, "size_bytes", old.artifact.size_bytes, new.artifact.size_bytes, limits.size)
    if old.parity and new.parity:
        first, second = old.parity.sqnr_db, new.parity.sqnr_db
        yield Change(
            subject=name,
            quantity="parity_sqnr_db",
            before=first,
            after=second,
            verdict=_verdict(_or_infinite(first), _or_infinite(second), limits.sqnr_db),
        )
    if old.placement and new.placement:
        left, leaves = (placement.operators - placement.accelerated for placement in (old.placement, new.placement))
        yield Change(
            subject=name, quantity="fallbacks", before=left, after=leaves, verdict=_verdict(-left, -leaves, 0.0)
        )
    yield from _latency_changes(name, old.latency, new.latency, before, after, limits.latency)


def _pairs(old: dict[str, float], new: dict[str, float]) -> Iterator[tuple[str, float | None, float | None]]:
    for metric in dict.fromkeys((*old, *new)):
        yield metric, old.get(metric), new.get(metric)


def _half_width(differences: Sequence[DifferenceRecord], metric: str) -> float:
    """How far a metric's difference to the original may be from the true one; 0 in reports without intervals."""
    return max(((found.high - found.low) / 2 for found in differences if found.metric == metric), default=0.0)


def _metric_change(
    subject: str,
    info: MetricInfo,
    first: float | None,
    second: float | None,
    same_data: bool,
    tolerance: float,
    noise: float = 0.0,
) -> Change:
    """A metric's change; one that the samples cannot tell from none is no change.

    Args:
        tolerance: See `Tolerances`.
        noise: In the metric's unit, of both runs' intervals.
    """
    verdict: Outcome = "incomparable"
    note = "" if same_data else "other evaluation samples"
    if same_data and first is not None and second is not None:
        ignored = tolerance if info.unit == "ratio" else tolerance * abs(first)
        sign = 1 if info.higher_is_better else -1
        verdict = _verdict(sign * first, sign * second, max(ignored, noise))
        if verdict == "same" and abs(second - first) > ignored:
            note = "within the 95 % intervals"
    elif same_data:
        note = "in one report only"
    return Change(
        subject=subject, quantity=info.name, before=first, after=second, verdict=verdict, note=note, metric=info
    )


def _budget_changes(name: str, before: Report, after: Report) -> Iterator[Change]:
    """Budgets of one metric that a target kept in one run and not in the other."""
    old = {budget.metric: budget for budget in budgets(before)}
    for budget in budgets(after):
        kept = old[budget.metric].verdict.get(name) if budget.metric in old else None
        keeps = budget.verdict.get(name)
        if kept is None or keeps is None or kept == keeps:
            continue
        order = ("exceeded", "unsure", "met")
        verdict: Outcome = "better" if order.index(keeps) > order.index(kept) else "worse"
        yield Change(subject=name, quantity="budget", before=kept, after=keeps, verdict=verdict)


def _latency_changes(
    name: str, old: Sequence[Latency], new: Sequence[Latency], before: Report, after: Report, tolerance: float
) -> Iterator[Change]:
    """Latencies of the same runtime, device and number of threads."""
    found = {_conditions(latency): latency for latency in new}
    for first in old:
        second = found.get(_conditions(first))
        if isinstance(first, Measured) and isinstance(second, Measured):
            threads = f"{first.threads} thread{'' if first.threads == 1 else 's'}"
            verdict, note = _latency_verdict(first, second, drift(before, after, first.threads), tolerance)
            if before.run.environment.cpu != after.run.environment.cpu:
                verdict, note = "incomparable", "another CPU"
            yield Change(
                subject=f"{name}, {first.runtime}, {threads}",
                quantity="median_ns",
                before=first.median_ns,
                after=second.median_ns,
                verdict=verdict,
                note=note,
            )
        elif isinstance(first, Estimated) and isinstance(second, Estimated):
            change = _relative(f"{name}, {first.device}", "median_ns", first.median_ns, second.median_ns, 0.01)
            same = first.method == second.method
            note = "estimated" if same else "estimated by another method"
            yield change.model_copy(update={"note": note} if same else {"note": note, "verdict": "incomparable"})


def _conditions(latency: Latency) -> tuple[str, str, str, int]:
    return (latency.kind, latency.runtime, latency.device, getattr(latency, "threads", 0))


def drift(before: Report, after: Report, threads: int) -> tuple[Measured, Measured] | None:
    """The original's latency in both runs, where it is the same program in the same version of PyTorch."""
    versions = [report.run.environment.packages.get("torch") for report in (before, after)]
    if versions[0] != versions[1] or before.original.macs != after.original.macs:
        return None
    pair = [
        latency
        for report in (before, after)
        for latency in report.original.latency
        if isinstance(latency, Measured) and latency.threads == threads
    ]
    return (pair[0], pair[1]) if len(pair) == 2 else None


def _latency_verdict(
    first: Measured, second: Measured, control: tuple[Measured, Measured] | None, tolerance: float
) -> tuple[Outcome, str]:
    change = math.log(second.median_ns / first.median_ns)
    involved = [first, second]
    note = "the machine's drift is not known"
    if control is not None:
        machine = math.log(control[1].median_ns / control[0].median_ns)
        change, involved = change - machine, [*involved, *control]
        note = f"{100 * math.expm1(change):+.0f} % beyond the machine's drift of {100 * math.expm1(machine):+.0f} %"
    noise = math.sqrt(sum(median_uncertainty(latency.samples_ns) ** 2 for latency in involved))
    if any(spread(latency.samples_ns) >= NOISY for latency in (first, second)):
        note += "; unstable samples"
    return _verdict(0.0, -change, max(math.log1p(tolerance), noise)), note.replace("-", units.MINUS)


def _relative(subject: str, quantity: str, old: float, new: float, tolerance: float) -> Change:
    """A figure of which less is better."""
    verdict = _verdict(0.0, -math.log(new / old), math.log1p(tolerance)) if old > 0 and new > 0 else "incomparable"
    return Change(subject=subject, quantity=quantity, before=old, after=new, verdict=verdict)


def _verdict(old: float, new: float, tolerance: float) -> Outcome:
    """More is better; a difference within the tolerance is ignored (with room for the rounding of binary fractions)."""
    if old == new or abs(new - old) <= tolerance * (1 + 1e-9):
        return "same"
    return "better" if new > old else "worse"


def _or_infinite(sqnr_db: float | None) -> float:
    return math.inf if sqnr_db is None else sqnr_db


def _same_data(before: Report, after: Report) -> bool:
    hashes = [report.data["evaluation"].sha256 if "evaluation" in report.data else None for report in (before, after)]
    return hashes[0] == hashes[1]


def _caveats(before: Report, after: Report) -> tuple[str, ...]:
    old, new = before.run.environment, after.run.environment
    packages = [
        f"{name} {old.packages.get(name, '–')} → {new.packages.get(name, '–')}"
        for name in dict.fromkeys((*old.packages, *new.packages))
        if old.packages.get(name) != new.packages.get(name)
    ]
    found = (
        None if _same_data(before, after) else "the evaluation samples differ: accuracy is not comparable",
        None if old.cpu == new.cpu else f"the CPU differs ({old.cpu} → {new.cpu}): latency is not comparable",
        f"packages differ: {', '.join(packages)}" if packages else None,
    )
    return tuple(filter(None, found))


def _printed(comparison: ReportComparison) -> list[tuple[str, str, str, str, str, str]]:
    """Subject, quantity, before, after, change and verdict with its note, rounded for the screen."""
    return [
        (
            change.subject,
            "latency" if change.quantity == "median_ns" else units.heading(change.quantity),
            _shown(change, change.before),
            _shown(change, change.after),
            _difference(change),
            f"{change.verdict}{f' ({change.note})' if change.note else ''}",
        )
        for change in comparison.changes
    ]


def _shown(change: Change, value: object) -> str:
    if change.metric is not None and isinstance(value, int | float):
        return units.metric(value, change.metric)
    return (
        "no noise" if value is None and change.quantity.endswith("sqnr_db") else units.by_name(change.quantity, value)
    )


def _difference(change: Change) -> str:
    old, new = change.before, change.after
    if isinstance(old, str) or isinstance(new, str) or old is None or new is None:
        return ""
    if change.metric is not None:
        return units.change(new - old, change.metric)
    if change.quantity.endswith("_db"):
        return f"{new - old:+.1f}{units.NO_BREAK_SPACE}dB".replace("-", units.MINUS)
    if change.quantity == "fallbacks":
        return f"{new - old:+.0f}".replace("-", units.MINUS)
    if change.quantity.endswith(("_ns", "_bytes")) or change.quantity in ("parameters", "macs"):
        return f"{100 * (new / old - 1):+.1f}{units.NO_BREAK_SPACE}%".replace("-", units.MINUS) if old else ""
    return units.points(new - old)
