"""Each pass says at debug level what it changed and what it left, and nothing louder."""

import logging
from pathlib import Path

import pytest

import targets
from pipeline.recipe import CoremlConfig, OnnxConfig, TfliteConfig
from tests.targets.float_layers import model_of

CONFIGS = {
    "onnx": OnnxConfig(cpu="x86", vnni=True),
    "coreml": CoremlConfig(),
    "tflite": TfliteConfig(input_layout="nhwc"),
}
SAID = {
    "onnx": {
        ("targets.onnx.passes.clamp_integers", "Relu node_relu: removed, the quantization behind it implies it"),
        ("targets.onnx.passes.fold_weights", "QuantizeLinear node_QuantizeLinear_2: stored as int8 [8, 3, 3, 3]"),
        (
            "targets.onnx.passes.multiply_hardswish",
            "HardSwish n0: left, no product gives it for all 256 integers",
        ),
    },
    "coreml": {
        ("targets.coreml.lowering", "1 weights stored as int8"),
    },
    "tflite": {
        ("targets.tflite.forms", "hardswish, for the cpu: rewritten"),
        (
            "targets.tflite.forms",
            "conv2d, for the cpu: left, its channels, stride or size do not fit pairs of pixels",
        ),
        ("targets.tflite.layout", "input 0: NHWC, 1 TRANSPOSE removed, 0 readers get NCHW"),
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_passes_log_what_they_change_and_leave(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="targets"):
        targets.get(name, CONFIGS[name]).lower(model_of("hardswish"), tmp_path, name="model")
    records = [record for record in caplog.records if record.name.startswith("targets.")]
    assert {record.levelno for record in records} == {logging.DEBUG}
    assert SAID[name] <= {(record.name, record.getMessage()) for record in records}
