from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.report.compare import Change, Tolerances, compare, render_html, render_text
from pipeline.report.model import Parity, Report, TargetRecord
from pipeline.report.noise import median_uncertainty
from pipeline.target import Estimated, Latency, Measured, measured


def with_target(report: Report, index: int, **updates: Any) -> Report:
    targets = list(report.targets)
    targets[index] = targets[index].model_copy(update=updates)
    return report.model_copy(update={"targets": tuple(targets)})


def timed(report: Report, factor: Callable[[str, int], float]) -> Report:
    """Every measured sample multiplied by ``factor(model, threads)``."""

    def scaled(model: str, latencies: tuple[Latency, ...]) -> tuple[Latency, ...]:
        return tuple(
            measured(
                runtime=latency.runtime,
                device=latency.device,
                threads=latency.threads,
                warmup_ns=latency.warmup_ns,
                samples_ns=tuple(round(s * factor(model, latency.threads)) for s in latency.samples_ns),
            )
            if isinstance(latency, Measured)
            else latency
            for latency in latencies
        )

    targets = tuple(t.model_copy(update={"latency": scaled(t.target, t.latency)}) for t in report.targets)
    original = report.original.model_copy(update={"latency": scaled("original", report.original.latency)})
    return report.model_copy(update={"targets": targets, "original": original})


def with_environment(report: Report, **updates: Any) -> Report:
    environment = report.run.environment.model_copy(update=updates)
    return report.model_copy(update={"run": report.run.model_copy(update={"environment": environment})})


def change(report: Report, other: Report, subject: str, quantity: str) -> Change:
    found = [c for c in compare(report, other).changes if (c.subject, c.quantity) == (subject, quantity)]
    assert len(found) == 1
    return found[0]


ONE_THREAD = ("onnx, ONNX Runtime, 1 thread", "median_ns")


def test_nothing_changed_when_a_report_is_compared_with_itself(report: Report) -> None:
    comparison = compare(report, report)
    assert {c.verdict for c in comparison.changes} == {"same"}
    assert (comparison.regressions, comparison.caveats) == ((), ())
    assert len([c for c in comparison.changes if c.quantity == "median_ns"]) == 5  # 2 onnx, 2 tflite, 1 estimate


@pytest.mark.parametrize(
    ("updates", "quantity", "verdict"),
    [
        pytest.param({"metrics": {"top1": 0.9263 - 0.0010}}, "top1", "same", id="drop at the tolerance"),
        pytest.param({"metrics": {"top1": 0.9263 - 0.0011}}, "top1", "worse", id="drop beyond it"),
        pytest.param({"metrics": {"top1": 0.9263 + 0.0011}}, "top1", "better", id="gain beyond it"),
        pytest.param({"metrics": {}}, "top1", "incomparable", id="metric gone"),
        pytest.param(
            {"parity": Parity(sqnr_db=50.2, max_abs_error=0.1, top1_agreement=1.0)},
            "parity_sqnr_db",
            "worse",
            id="-1.1 dB",
        ),
        pytest.param(
            {"parity": Parity(sqnr_db=50.4, max_abs_error=0.1, top1_agreement=1.0)},
            "parity_sqnr_db",
            "same",
            id="-0.9 dB",
        ),
        pytest.param(
            {"parity": Parity(sqnr_db=None, max_abs_error=0.0, top1_agreement=1.0)},
            "parity_sqnr_db",
            "better",
            id="no noise",
        ),
    ],
)
def test_change_is_judged_by_its_tolerance_when_a_target_moves(
    report: Report, updates: dict[str, Any], quantity: str, verdict: str
) -> None:
    assert change(report, with_target(report, 0, **updates), "onnx", quantity).verdict == verdict


@pytest.mark.parametrize(
    ("size_bytes", "verdict"),
    [(79_000, "same"), (79_300, "worse"), (77_000, "better")],
    ids=["+0.7 %", "+1.1 %", "-1.8 %"],
)
def test_growth_of_the_artifact_is_a_regression_when_beyond_one_percent(
    report: Report, size_bytes: int, verdict: str
) -> None:
    assert report.targets[0].artifact is not None
    model = report.targets[0].artifact.model_copy(update={"size_bytes": size_bytes})
    assert change(report, with_target(report, 0, artifact=model), "onnx", "size_bytes").verdict == verdict


def test_operator_that_leaves_the_accelerator_is_a_regression_when_there_was_none(report: Report) -> None:
    assert report.targets[2].placement is not None
    placement = report.targets[2].placement.model_copy(update={"accelerated": 28})
    found = change(report, with_target(report, 2, placement=placement), "tflite", "fallbacks")
    assert (found.before, found.after, found.verdict) == (0, 1, "worse")


def test_only_the_candidate_is_slower_when_the_machine_is_unchanged(report: Report) -> None:
    other = timed(report, lambda model, threads: 1.2 if (model, threads) == ("onnx", 1) else 1.0)
    assert [(c.subject, c.quantity) for c in compare(report, other).regressions] == [ONE_THREAD]
    assert next(c for c in compare(other, report).changes if c.verdict == "better").subject == ONE_THREAD[0]


def test_no_latency_is_a_regression_when_the_whole_machine_is_twice_as_slow(report: Report) -> None:
    assert compare(report, timed(report, lambda *_: 2.0)).regressions == ()


def test_slow_candidate_is_found_when_the_machine_became_faster_at_the_same_time(report: Report) -> None:
    """0.5 for all but the candidate, which stays at 0.6: 20 % slower than the drift explains, though faster in ms."""
    other = timed(report, lambda model, threads: 0.6 if (model, threads) == ("tflite", 1) else 0.5)
    (found,) = compare(report, other).regressions
    assert found.subject == "tflite, LiteRT, 1 thread"
    assert found.note == "+20 % beyond the machine's drift of −50 %"


def test_latency_within_the_tolerance_is_the_same_when_nine_percent_slower(report: Report) -> None:
    other = timed(report, lambda model, threads: 1.09 if (model, threads) == ("onnx", 1) else 1.0)
    assert compare(report, other).regressions == ()
    assert [c.subject for c in compare(report, other, Tolerances(latency=0.05)).regressions] == [ONE_THREAD[0]]


def test_latency_is_the_same_when_its_samples_are_too_scattered_to_tell(report: Report) -> None:
    """Half the samples at 1 and half at 3 units: the median's interval spans both, so 30 % tells nothing."""

    def scattered(unit: float) -> Report:
        latency = measured(
            runtime="ONNX Runtime",
            device="Fixture CPU",
            threads=1,
            warmup_ns=(),
            samples_ns=tuple(round(unit * factor) for factor in [1] * 20 + [3] * 20),
        )
        return with_target(report, 0, latency=(latency,))

    found = change(scattered(1e5), scattered(1.3e5), *ONE_THREAD)
    assert found.verdict == "same"
    assert found.note.endswith("unstable samples")


def test_latency_is_the_same_when_there_are_fewer_than_six_samples(report: Report) -> None:
    def short(nanoseconds: int) -> Report:
        latency = measured(runtime="ONNX Runtime", device="d", threads=1, warmup_ns=(), samples_ns=(nanoseconds,) * 5)
        return with_target(report, 0, latency=(latency,))

    assert change(short(100), short(1000), *ONE_THREAD).verdict == "same"


def test_drift_is_not_taken_out_when_pytorch_itself_changed(report: Report) -> None:
    """Another version may run the original slower: then that is no drift of the machine."""
    other = with_environment(timed(report, lambda *_: 2.0), packages={"torch": "9.9"})
    found = change(report, other, *ONE_THREAD)
    assert (found.verdict, found.note) == ("worse", "the machine's drift is not known")


def test_latency_is_incomparable_when_the_cpu_differs(report: Report) -> None:
    comparison = compare(report, with_environment(report, cpu="Another CPU"))
    measurements = [c for c in comparison.changes if c.quantity == "median_ns" and c.note != "estimated"]
    assert {c.verdict for c in measurements} == {"incomparable"}
    assert comparison.caveats == ("the CPU differs (Fixture CPU 9000 → Another CPU): latency is not comparable",)


def test_accuracy_is_incomparable_when_the_evaluation_samples_differ(report: Report) -> None:
    evaluation = report.data["evaluation"].model_copy(update={"sha256": "0" * 64})
    comparison = compare(report, report.model_copy(update={"data": {**report.data, "evaluation": evaluation}}))
    assert {c.verdict for c in comparison.changes if c.quantity == "top1"} == {"incomparable"}
    assert "accuracy is not comparable" in comparison.caveats[0]


def test_changed_packages_are_named_when_versions_differ(report: Report) -> None:
    other = with_environment(report, packages={"fixture-package": "1.2.4", "new-one": "1"})
    assert compare(report, other).caveats == (
        "packages differ: fixture-package 1.2.3 → 1.2.4, another-fixture 4.5 → –, new-one – → 1",
    )


@pytest.mark.parametrize(
    ("was", "now", "verdict"),
    [
        ("ok", "failed", "worse"),
        ("failed", "ok", "better"),
        ("ok", "skipped", "incomparable"),
        ("ok", "absent", "incomparable"),
    ],
)
def test_target_that_stops_working_is_a_regression_when_it_worked_before(
    report: Report, was: Any, now: Any, verdict: str
) -> None:
    def only(status: Any) -> Report:
        targets = () if status == "absent" else (TargetRecord(target="onnx", status=status, reason="why"),)
        return report.model_copy(update={"targets": targets})

    found = change(only(was), only(now), "onnx", "status")
    assert (found.before, found.after, found.verdict) == (was, now, verdict)


def test_exceeded_budget_is_a_regression_when_it_was_met(report: Report) -> None:
    assert report.budget is not None
    budget = report.budget.model_copy(update={"met": {"onnx": False, "tflite": False}})
    found = change(report, report.model_copy(update={"budget": budget}), "onnx", "budget")
    assert (found.before, found.after, found.verdict) == ("met", "exceeded", "worse")


def test_estimates_are_incomparable_when_their_methods_differ(report: Report) -> None:
    first = report.targets[1].latency[0]
    assert isinstance(first, Estimated)
    other = with_target(report, 1, latency=(first.model_copy(update={"method": "another"}),))
    assert change(report, other, "coreml, Fixture phone NPU", "median_ns").verdict == "incomparable"


@pytest.mark.parametrize("count", range(6, 200))
def test_median_interval_covers_95_percent_when_counted_exactly(count: int) -> None:
    """P(x_low <= median < x_high) = P(low <= B < high) for B ~ Binomial(n, 1/2): counted, not approximated."""
    width = round(2 * median_uncertainty(range(1, count + 1)) * (count + 1) / 2)
    low = (count + 1 - width) // 2
    inside = sum(math.comb(count, k) for k in range(low, low + width))
    assert inside / 2**count >= 0.95


def test_median_uncertainty_shrinks_when_samples_grow() -> None:
    generator = np.random.default_rng(0)
    few, many = (median_uncertainty(generator.integers(900, 1100, n).tolist()) for n in (30, 3000))
    assert many < few / 5


def test_text_and_page_show_the_regression_when_there_is_one(report: Report) -> None:
    other = with_target(report, 0, metrics={"top1": 0.9})
    comparison = compare(report, other)
    line = next(line for line in render_text(comparison).splitlines() if line.startswith("onnx ") and "top1" in line)
    assert line.replace("\N{NO-BREAK SPACE}", " ").split("  ")[-1] == "worse"
    assert "92.63 %" in line.replace("\N{NO-BREAK SPACE}", " ")
    assert render_text(comparison).endswith("\n1 regression")
    page = render_html(comparison)
    assert '<strong class="bad">worse</strong>' in page
    assert "<strong>1 regression.</strong>" in page


def test_page_escapes_every_text_when_a_report_is_hostile(report: Report) -> None:
    evil = "</title><script>alert(1)</script>"
    run = report.run.model_copy(update={"id": evil})
    targets = tuple(target.model_copy(update={"target": evil}) for target in report.targets[:1])
    hostile = with_environment(report.model_copy(update={"run": run, "targets": targets}), cpu=evil)
    assert "<script" not in render_html(compare(report, hostile))
