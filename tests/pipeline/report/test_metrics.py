"""Metrics in their own unit and direction: on the page, in a comparison, and in a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from pipeline.core import MetricInfo
from pipeline.report.compare import Change, compare, render_html, render_text
from pipeline.report.html import render
from pipeline.report.model import DifferenceRecord, MetricBudget, Parity, Report, Sureness, TaskRecord
from pipeline.report.verdict import verdict


@dataclass(frozen=True)
class Direction:
    """A metric, a value of the original, a worse one, and how both are printed."""

    info: MetricInfo
    original: float
    worse: float
    printed: str
    change: str
    allowed: str


HIGHER = Direction(
    MetricInfo(name="psnr", title="PSNR", unit="dB"), 31.5, 30.0, "31.5 dB", "−1.50 dB", "drop of 2.00 dB"
)
LOWER = Direction(
    MetricInfo(name="mae", title="Mean absolute error", unit="m", higher_is_better=False),
    0.5,
    2.0,
    "0.500 m",
    "+1.50 m",
    "increase of 2.00 m",
)
both = pytest.mark.parametrize("case", [HIGHER, LOWER], ids=["higher is better", "lower is better"])


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def judged(
    report: Report, case: Direction, value: float, *, width: float = 0.0, sure: Sureness = "met", allowed: float = 2.0
) -> Report:
    """A report of that metric, in which onnx reached a value."""
    difference = DifferenceRecord(
        metric=case.info.name,
        value=value - case.original,
        low=value - case.original - width,
        high=value - case.original + width,
        samples=100,
        method="bootstrap",
        verdict=sure,
        enough_samples=700 if sure == "unsure" else None,
    )
    target = report.targets[0].model_copy(
        update={
            "metrics": {case.info.name: value},
            "fp32_metrics": None,
            "differences": (difference,),
            "parity": Parity(sqnr_db=45.0, max_abs_error=0.01, top1_agreement=None),  # it holds no class scores
        }
    )
    budget = MetricBudget(metric=case.info.name, max_drop=allowed, unit=case.info.unit, verdict={target.target: sure})
    original = report.original.model_copy(update={"metrics": {case.info.name: case.original}})
    changes: dict[str, Any] = {
        "task": TaskRecord(name="own", metrics=(case.info,)),
        "budget": None,
        "budgets": (budget,),
        "targets": (target,),
        "original": original,
        "stages": (),
    }
    return report.model_copy(update=changes)


def of_onnx(before: Report, after: Report, quantity: str) -> Change:
    return next(c for c in compare(before, after).changes if (c.subject, c.quantity) == ("onnx", quantity))


@both
def test_page_has_value_and_change_in_the_metrics_unit(case: Direction, report: Report) -> None:
    page = plain(render(judged(report, case, case.worse)))
    assert f"<b>{case.printed}</b>" in page
    assert f'<span class="second">{case.change} (95 %: {case.change} to {case.change})</span>' in page
    assert f"{case.info.title} on" in page
    assert f"within the allowed {case.allowed}" in page
    assert "<b>45.0 dB</b>" in page
    table = page[page.index('class="headline"') : page.index("</tbody>")]
    assert "%" not in table.replace("95 %", "")


@both
def test_change_is_judged_by_the_metrics_direction(case: Direction, report: Report) -> None:
    before, after = judged(report, case, case.original), judged(report, case, case.worse)
    assert of_onnx(before, after, case.info.name).verdict == "worse"
    assert of_onnx(after, before, case.info.name).verdict == "better"
    text = plain(render_text(compare(before, after)))
    line = next(line for line in text.splitlines() if line.startswith("onnx ") and case.info.name in line)
    assert case.printed in line
    assert case.change in line
    assert case.change in plain(render_html(compare(before, after)))


@both
def test_change_within_the_intervals_is_no_regression(case: Direction, report: Report) -> None:
    """Each interval reaches 1.2 to both sides, so their difference is sure to 1.7: 1.5 tells nothing, 3 does."""
    before, after = (judged(report, case, value, width=1.2) for value in (case.original, case.worse))
    change = of_onnx(before, after, case.info.name)
    assert (change.verdict, change.note) == ("same", "within the 95 % intervals")
    assert compare(before, after).regressions == ()
    far = case.original + 2 * (case.worse - case.original)
    assert of_onnx(before, judged(report, case, far, width=1.2), case.info.name).verdict == "worse"


@both
def test_verdict_says_how_many_samples_would_tell(case: Direction, report: Report) -> None:
    unsure = judged(report, case, case.worse, width=1.0, sure="unsure")
    sentence = plain(verdict(unsure).sentence)
    assert "ccuracy budget on onnx: cannot tell with 100 samples; about 700 would: " in sentence
    exceeded = judged(report, case, case.worse, sure="exceeded", allowed=1.0)
    said = f"ccuracy budget exceeded on onnx: more than the allowed {case.allowed.replace('2.00', '1.00')}"
    assert said in plain(verdict(exceeded).sentence)


def test_budget_that_became_unsure_is_a_regression(report: Report) -> None:
    before = judged(report, LOWER, LOWER.worse)
    after = judged(report, LOWER, LOWER.worse, width=1.0, sure="unsure")
    found = of_onnx(before, after, "budget")
    assert (found.before, found.after, found.verdict) == ("met", "unsure", "worse")


def test_verdict_names_the_metric_of_each_of_several_budgets(report: Report) -> None:
    one = judged(report, LOWER, LOWER.original)
    other = one.budgets[0].model_copy(update={"metric": "top1", "max_drop": 0.01, "verdict": {"onnx": "exceeded"}})
    sentence = plain(verdict(one.model_copy(update={"budgets": (*one.budgets, other)})).sentence)
    assert "Budget of Top-1 accuracy exceeded on onnx: more than the allowed drop of 1.00 pp." in sentence
    assert "Budget of Mean absolute error met on onnx: within the allowed increase of 2.00 m." in sentence
