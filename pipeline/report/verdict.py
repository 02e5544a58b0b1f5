"""The verdict on a run: whether everything that was asked for holds on every target, and what does not.

A run has passed where every target has files that were shown to be right, accuracy stays within the budget, the files
follow the program, and none is slower than the FP32 original in the same runtime. What could not be judged is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.report import units
from pipeline.report.model import MetricBudget, Report, Sureness, TargetRecord, VerdictRecord, budgets, metric_info
from pipeline.report.noise import median_uncertainty
from pipeline.target import Measured

Tone = Literal["good", "bad", "open"]
TITLES: dict[Tone, str] = {"good": "Passed.", "bad": "Not passed.", "open": "Open."}
PARITY_DB = {"INT8": 30.0, "FP32": 60.0}
"""SQNR on the evaluation set from which a file follows the program that it was made from."""
SLOWER = 1.03
"""Medians of the same program differ by up to this factor from run to run, whatever their confidence intervals say."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The conclusion in a few sentences, and whether it is good news."""

    tone: Tone
    sentence: str


def judge(report: Report) -> VerdictRecord:
    """The verdict as report.json has it."""
    wrong, unknown = list(_wrong(report)), list(_unknown(report))
    return VerdictRecord(passed=not (wrong or unknown), reasons=(*wrong, *unknown, *_unmeasured(report)))


def verdict(report: Report) -> Verdict:
    """The verdict in sentences: what did not hold first, then what did, then what is not known."""
    wrong, unknown = list(_wrong(report)), list(_unknown(report))
    tone: Tone = "bad" if wrong else "open" if unknown else "good"
    held = [
        f"{_called(report, budget)} met on {listed(kept)}: within {_allowed(report, budget)}"
        for budget in budgets(report)
        if (kept := _targets(budget, "met"))
    ]
    return Verdict(tone, " ".join(_sentence(text) for text in (*wrong, *held, *unknown, *_unmeasured(report))))


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _wrong(report: Report) -> Iterator[str]:
    """What was shown not to hold."""
    if report.failure is not None:
        yield f"stage {report.failure.stage} failed: {report.failure.reason}"
    for target in report.targets:
        if target.status == "failed":
            yield f"target {target.target} failed: {(target.reason or 'no reason was recorded').splitlines()[0]}"
    for budget in budgets(report):
        if exceeded := _targets(budget, "exceeded"):
            yield f"{_called(report, budget)} exceeded on {listed(exceeded)}: more than {_allowed(report, budget)}"
    least = PARITY_DB["INT8" if any(stage.stage == "quantize" for stage in report.stages) else "FP32"]
    for target in report.targets:
        yield from _lost_parity(target, least)
        yield from _slower(target)


def _lost_parity(target: TargetRecord, least: float) -> Iterator[str]:
    found = None if target.parity is None else target.parity.sqnr_db
    explained = target.verified is not None and target.verified.explained
    if found is not None and found < least and not explained:
        yield f"target {target.target} does not follow the program: {found:.1f} dB, less than {least:g} dB"


def _slower(target: TargetRecord) -> Iterator[str]:
    """The numbers of threads with which the optimized file is slower than the original, outside the noise."""
    originals = {latency.threads: latency for latency in target.fp32_latency if isinstance(latency, Measured)}
    for latency in target.latency:
        if not isinstance(latency, Measured) or latency.threads not in originals:
            continue
        before = originals[latency.threads]
        noise = median_uncertainty(latency.samples_ns) + median_uncertainty(before.samples_ns)
        if latency.median_ns > before.median_ns * max(SLOWER, 1 + noise):
            threads = "one thread" if latency.threads == 1 else f"{latency.threads} threads"
            yield (
                f"slower than FP32 in {latency.runtime} on {threads}: "
                f"{units.times(before.median_ns / latency.median_ns)} its speed{_culprit(target)}"
            )


def _culprit(target: TargetRecord) -> str:
    """The operators that most often fall back."""
    if target.placement is None or not target.placement.fallback:
        return ""
    most = max(target.placement.fallback, key=lambda fallback: fallback.count)
    return f"; {most.count} {most.op} operator{'s' if most.count > 1 else ''} not accelerated"


def _unknown(report: Report) -> Iterator[str]:
    """What has to hold, and could not be judged."""
    if not report.targets:
        yield "the recipe names no target"
    for target in report.targets:
        if target.status == "skipped":
            yield f"target {target.target} skipped: {target.reason}"
        elif target.status == "ok" and any(target.target not in budget.verdict for budget in budgets(report)):
            because = f": {target.metrics_skipped}" if target.metrics_skipped else ""
            yield f"accuracy of {target.target} not measured{because}"
    for budget in budgets(report):
        for name in _targets(budget, "unsure"):
            yield f"{_called(report, budget)} on {name}: {_unsure(report, budget, name)}"


def _targets(budget: MetricBudget, verdict: Sureness) -> list[str]:
    return [name for name, found in budget.verdict.items() if found == verdict]


def _unsure(report: Report, budget: MetricBudget, name: str) -> str:
    """Why it cannot be told whether a target keeps a budget, and what would tell."""
    info = metric_info(report, budget.metric)
    target = next(record for record in report.targets if record.target == name)
    difference = next(found for found in target.differences if found.metric == budget.metric)
    interval = f"{units.change(difference.low, info)} to {units.change(difference.high, info)}"
    enough = "" if difference.enough_samples is None else f"; about {difference.enough_samples} would"
    return f"cannot tell with {difference.samples} samples{enough}: {info.title} changed by {interval} (95 %)"


def _unmeasured(report: Report) -> Iterator[str]:
    """Targets whose latency no runtime here has measured."""
    for target in report.targets:
        if target.status == "ok" and not any(isinstance(latency, Measured) for latency in target.latency):
            reasons = [latency.reason for latency in target.latency if latency.kind == "skipped"]
            yield f"latency of {target.target} not measured" + (f": {reasons[0]}" if reasons else "")


def _called(report: Report, budget: MetricBudget) -> str:
    """A budget's name in a sentence; where there are several, their metrics tell them apart."""
    if len(budgets(report)) == 1:
        return "accuracy budget"
    return f"budget of {metric_info(report, budget.metric).title}"


def _allowed(report: Report, budget: MetricBudget) -> str:
    info = metric_info(report, budget.metric)
    drop = units.change(budget.max_drop, info).lstrip("+")
    return f"the allowed {'drop' if info.higher_is_better else 'increase'} of {drop}"


def _sentence(text: str) -> str:
    """A clause as a sentence."""
    return f"{text[0].upper()}{text[1:]}."
