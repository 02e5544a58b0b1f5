"""Every option of every target in a run, in pairs, with integers and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from pipeline.execution.apply import run
from pipeline.report.model import TargetRecord
from tests.pipeline.conftest import quadrants
from tests.pipeline.execution.tiny import tiny_recipe
from tests.pipeline.pairs import Options, pairwise

STAGES: tuple[dict[str, Any], ...] = ({}, {"stages": [{"quantize": {"observers": ["minmax"], "skip": ["head"]}}]})

ONNX: Options = {
    "stages": STAGES,
    "cpu": ({}, {"cpu": "x86", "vnni": False}, {"cpu": "x86", "vnni": True}, {"cpu": "arm"}),
    "variants": ({}, {"variants": ["fp16"]}),
    "providers": ({}, {"providers": ["cuda", "xnnpack", "cpu"]}),
    "ort": ({}, {"ort": True}),
    "image_input": ({}, {"image_input": True}),
    "dynamic": ({}, {"dynamic": {"image": [2, 3]}}),
}
COREML: Options = {
    "stages": STAGES,
    "device": (
        {"deployment_target": "iOS17", "compute_units": "cpu_and_ne"}, {"deployment_target": "iOS18"},
        {"deployment_target": "macOS14", "compute_units": "cpu_only"},
        {"deployment_target": "macOS15", "compute_units": "cpu_and_gpu"},
    ),
    "batch_sizes": ({}, {"batch_sizes": [3, 5]}),
    "precision": ({}, {"precision": "float32"}),
    "image_input": ({}, {"image_input": True}),
    "classifier": ({}, {"classifier": True}),
    "variants": ({}, {"variants": ["fp16", "int8_weights", "palettized_6bit", "palettized_4bit"]}),
}  # fmt: skip
TFLITE: Options = {
    "stages": STAGES,
    "npu": ({}, {"npu": ["ethos-u55-64", "ethos-u85-256"]}),
    "optimize_for": ({}, {"optimize_for": "npu"}),
    "io": ({}, {"io": "uint8"}, {"io": "float32"}),
    "input_layout": ({}, {"input_layout": "nhwc"}),
    "reference_kernels": ({}, {"reference_kernels": False}),
    "gpu": ({}, {"gpu": True}),
    "aot": ({}, {"aot": ["qualcomm:SM8650"]}),
    "variants": ({}, {"variants": ["fp16", "int8_dynamic"]}),
}  # fmt: skip


def recorded(target: str, options: dict[str, Any], tiny: Path, out: Path) -> TargetRecord:
    """What the report says of a target that was asked for with these options."""
    config = dict(options)
    stages = config.pop("stages", [])
    recipe = tiny_recipe(stages=stages, targets=[{target: config}])
    (record,) = run(recipe, out, root=tiny, store=tiny / ".store").targets
    return record


def check_delivery(record: TargetRecord, options: dict[str, Any], out: Path) -> None:
    """The target has all its files, and each of them ran."""
    assert record.status == "ok", record.reason
    assert record.verified is not None
    assert record.metrics is not None
    assert record.metrics["agreement"] >= 0.8
    for artifact in (record.artifact, record.fp32_artifact):
        assert artifact is not None
        assert (out / artifact.path).exists()
    assert [(each.variant, each.status) for each in record.variants] == [(v, "ok") for v in options.get("variants", ())]
    assert record.parity is not None


def check_other_size(record: TargetRecord, out: Path) -> None:
    """Integers are no further from FP32 for images that are twice as large as the recipe's."""
    assert record.fp32_artifact is not None
    assert record.artifact is not None
    sessions = [onnxruntime.InferenceSession(out / each.path) for each in (record.fp32_artifact, record.artifact)]
    images = quadrants(32, seed=3)["images"][:, None]
    errors = []
    for pixels in (images, images.repeat(2, axis=2).repeat(2, axis=3)):
        logits = []
        for session in sessions:
            (port,) = session.get_inputs()
            given = pixels if port.type == "tensor(uint8)" else np.float32(pixels / 255)
            logits.append(session.run(None, {port.name: given})[0])
        errors.append(np.abs(logits[0] - logits[1]).max())
    assert errors[1] <= 1.5 * errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("options", list(pairwise(ONNX)), ids=str)
def test_run_delivers_onnx_as_the_recipe_asks_when_options_meet(
    options: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    record = recorded("onnx", options, tiny, tmp_path / "out")
    check_delivery(record, options, tmp_path / "out")
    assert len(list((tmp_path / "out" / "onnx").glob("*.ort"))) == (2 if "ort" in options else 0)
    if "dynamic" in options:
        check_other_size(record, tmp_path / "out")
    asked = {name for name in options.get("providers", ()) if name != "cpu"}
    assert len([entry for entry in record.latency if entry.kind == "skipped"]) == len(asked)


@pytest.mark.slow
@pytest.mark.parametrize("options", list(pairwise(COREML)), ids=str)
def test_run_delivers_coreml_as_the_recipe_asks_when_options_meet(
    options: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    record = recorded("coreml", options, tiny, tmp_path / "out")
    check_delivery(record, options, tmp_path / "out")
    assert record.placement is not None


@pytest.mark.slow
@pytest.mark.parametrize("options", list(pairwise(TFLITE)), ids=str)
def test_run_delivers_tflite_as_the_recipe_asks_when_options_meet(
    options: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    record = recorded("tflite", options, tiny, tmp_path / "out")
    check_delivery(record, options, tmp_path / "out")
    estimated = [entry for entry in record.latency if entry.kind == "estimated"]
    assert len(estimated) == (len(options.get("npu", ())) if "stages" in options else 0)
