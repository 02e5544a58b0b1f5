import sys
from pathlib import Path

import pytest
import torch

import targets
from pipeline.core import Model, TargetError, TensorSpec
from pipeline.models.load import from_module
from pipeline.stages.export import export


def tiny() -> Model:
    return from_module(torch.nn.Linear(4, 2), [TensorSpec(name="x", shape=(4,))])


@pytest.mark.slow
def test_export_names_the_pip_command_and_goes_on_when_a_target_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent, present = targets.get("coreml"), targets.get("onnx")
    monkeypatch.setitem(sys.modules, "coremltools", None)  # how Python itself marks a module that cannot be imported
    skipped, exported = export(tiny(), [absent, present], tmp_path)
    assert (skipped.status, skipped.reason) == ("skipped", "not installed: pip install 'edgewright[coreml]'")
    assert exported.status == "ok"
    assert exported.optimized is not None
    assert exported.optimized.path.exists()


@pytest.mark.slow
def test_export_gives_the_reason_and_goes_on_when_a_target_cannot_hold_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, present = targets.get("coreml"), targets.get("onnx")

    def refuse(*_: object, **__: object) -> None:
        raise TargetError("no form for aten.fft", where="coreml", fix="remove the layer")

    monkeypatch.setattr(type(failing), "lower", refuse)
    failed, exported = export(tiny(), [failing, present], tmp_path)
    assert failed.status == "failed"
    assert failed.reason is not None
    assert "no form for aten.fft" in failed.reason
    assert exported.status == "ok"
