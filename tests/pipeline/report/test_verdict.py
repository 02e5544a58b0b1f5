from typing import Any

import pytest

from pipeline.report.model import BudgetRecord, FailureRecord, Parity, Report, TargetRecord
from pipeline.report.verdict import judge, verdict
from pipeline.target import Fallback, Placement, Skipped, Verified, measured

PLACED = Placement(operators=60, accelerated=8, fallback=(Fallback(op="Pad", count=52, reason="float"),), source="s")


def timed(ns: int, threads: int = 1) -> Any:
    samples = tuple(ns + offset for offset in range(-50, 50))
    return measured(runtime="onnxruntime", device="cpu", threads=threads, warmup_ns=(), samples_ns=samples)


def target(name: str = "onnx", **fields: Any) -> TargetRecord:
    return TargetRecord(**{"target": name, "status": "ok", "latency": (timed(1000),), **fields})


def with_targets(report: Report, *targets: TargetRecord, met: dict[str, bool] | None = None, **fields: Any) -> Report:
    met = {record.target: True for record in targets if record.status == "ok"} if met is None else met
    budget = BudgetRecord(metric="top1", max_drop=0.01, met=met)
    return report.model_copy(update={"budget": budget, "targets": targets, **fields})


@pytest.mark.parametrize(
    ("targets", "met", "tone", "sentence"),
    [
        pytest.param([target()], None, "good", "Accuracy budget met on onnx: within", id="met"),
        pytest.param([target(), target("a"), target("b")], None, "good", "met on onnx, a and b:", id="three met"),
        pytest.param([target()], {"onnx": False}, "bad", "exceeded on onnx: more than", id="exceeded"),
        pytest.param(
            [target(), target("coreml", status="skipped", reason="not installed", latency=())],
            None,
            "open",
            "Target coreml skipped: not installed.",
            id="one skipped",
        ),
        pytest.param(
            [target(), target("tflite", status="failed", reason="no form\n  fix: x", latency=())],
            None,
            "bad",
            "Target tflite failed: no form.",
            id="one failed",
        ),
        pytest.param(
            [target(metrics_skipped="no runtime")], {}, "open", "Accuracy of onnx not measured: no runtime.", id="unrun"
        ),
        pytest.param([], None, "open", "The recipe names no target.", id="no targets"),
        pytest.param(
            [target(latency=(Skipped(runtime="Core ML", device="Mac", reason="runs only on macOS"),))],
            None,
            "good",
            "Latency of onnx not measured: runs only on macOS.",
            id="no latency",
        ),
        pytest.param(
            [target(parity=Parity(sqnr_db=20.0, max_abs_error=1.0, top1_agreement=None))],
            None,
            "bad",
            "Target onnx does not follow the program: 20.0 dB, less than",
            id="parity lost",
        ),
        pytest.param(
            [target(latency=(timed(1100),), fp32_latency=(timed(1000),), placement=PLACED)],
            None,
            "bad",
            "Slower than FP32 in onnxruntime on one thread: 0.909× its speed; 52 Pad operators not accelerated.",
            id="slower",
        ),
        pytest.param(
            [target(latency=(timed(1020),), fp32_latency=(timed(1000),))],
            None,
            "good",
            "met on onnx",
            id="in the noise",
        ),
        pytest.param(
            [target(latency=(timed(900), timed(1200, 2)), fp32_latency=(timed(1000), timed(600, 2)))],
            None,
            "bad",
            "Slower than FP32 in onnxruntime on 2 threads: 0.500× its speed.",
            id="slower on two threads",
        ),
    ],
)
def test_verdict_tells_good_from_bad_when_targets_were_judged(
    report: Report, targets: list[TargetRecord], met: dict[str, bool] | None, tone: str, sentence: str
) -> None:
    judged = with_targets(report, *targets, met=met)
    found = verdict(judged)
    assert (found.tone, sentence in found.sentence) == (tone, True), found.sentence
    assert judge(judged).passed is (tone == "good")


def test_verdict_accepts_lower_parity_when_arithmetic_explains_it(report: Report) -> None:
    explained = Verified(samples=4, original_sqnr_db={}, optimized_sqnr_db={"y": 28.0}, explained=("FP16 arithmetic",))
    parity = Parity(sqnr_db=28.0, max_abs_error=1.0, top1_agreement=None)
    judged = with_targets(report, target(parity=parity, verified=explained))
    assert judge(judged).passed is True


def test_verdict_names_the_stage_when_one_failed(report: Report) -> None:
    left_out = target(status="skipped", reason="not reached: stage quantize failed", latency=())
    judged = with_targets(report, left_out, failure=FailureRecord(stage="quantize", reason="no memory"))
    assert judge(judged).passed is False
    assert judge(judged).reasons[0] == "stage quantize failed: no memory"
    assert verdict(judged).sentence.startswith("Stage quantize failed: no memory.")
