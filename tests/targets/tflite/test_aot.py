import pytest

from pipeline.core import RecipeError
from targets.tflite import aot


@pytest.mark.parametrize(
    ("wanted", "package"),
    [
        ("qualcomm:SM8650", "ai-edge-litert-sdk-qualcomm"),
        ("mediatek:MT6989", "ai-edge-litert-sdk-mediatek"),
        ("google_tensor:Tensor_G5", "ai-edge-litert-sdk-google-tensor"),
    ],
)
def test_compile_ahead_is_skipped_with_the_command_when_the_sdk_is_missing(wanted, package, tmp_path):
    record = aot.compile_ahead(tmp_path / "model.tflite", wanted)
    assert record.reason == f"not installed: pip install {package}"
    assert record.device == wanted.replace(":", " ")


@pytest.mark.parametrize(
    ("wanted", "problem"), [("apple:A17", "no such vendor 'apple'"), ("qualcomm:SM1", "no such chip 'SM1'")]
)
def test_compile_ahead_refuses_what_litert_does_not_know(wanted, problem, tmp_path):
    with pytest.raises(RecipeError, match=problem):
        aot.compile_ahead(tmp_path / "model.tflite", wanted)
