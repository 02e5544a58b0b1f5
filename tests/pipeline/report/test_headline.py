from typing import Any

import pytest

from pipeline.report.headline import verdict
from pipeline.report.model import BudgetRecord, Report, TargetRecord


@pytest.mark.parametrize(
    ("met", "statuses", "tone", "sentence"),
    [
        pytest.param({"onnx": True}, {"onnx": "ok"}, "good", "Accuracy budget met on onnx: within", id="met"),
        pytest.param({"onnx": True, "a": True, "b": True}, {}, "good", "met on onnx, a and b:", id="three met"),
        pytest.param({"onnx": True, "tflite": False}, {}, "bad", "exceeded on tflite: more than", id="one exceeded"),
        pytest.param({"onnx": True}, {"coreml": "skipped"}, "good", "Not judged here: coreml.", id="one not judged"),
        pytest.param({"onnx": True}, {"tflite": "failed"}, "bad", "Failed: tflite.", id="one failed"),
        pytest.param({}, {"coreml": "ok"}, "open", "Not judged here: coreml.", id="none judged"),
        pytest.param({}, {}, "open", "The recipe names no target.", id="no targets"),
    ],
)
def test_verdict_tells_good_from_bad_when_targets_were_judged(
    report: Report, met: dict[str, bool], statuses: dict[str, Any], tone: str, sentence: str
) -> None:
    targets = tuple(TargetRecord(target=name, status=status) for name, status in statuses.items())
    found = verdict(
        report.model_copy(update={"budget": BudgetRecord(metric="top1", max_drop=0.01, met=met), "targets": targets})
    )
    assert found.tone == tone
    assert sentence in found.sentence
