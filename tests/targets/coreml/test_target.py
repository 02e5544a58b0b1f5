from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.core import TargetError, TensorSpec
from pipeline.models.load import from_module
from pipeline.recipe import CoremlConfig
from targets.coreml import CoremlTarget, lowering
from targets.coreml.session import InterpreterSession


@pytest.mark.slow
def test_explain_blames_fp16_only_when_the_package_in_fp32_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = replace(from_module(nn.Linear(4, 2), [TensorSpec(name="x", shape=(4,))]), examples=(torch.randn(3, 4),))
    target = CoremlTarget()
    lowered = target.lower(model, tmp_path, name="model")
    assert target.explain(lowered, model) == "FP16 arithmetic; in FP32 the package reaches 60 dB and more"
    assert CoremlTarget(CoremlConfig(precision="float32")).explain(lowered, model) is None  # nothing is left to blame
    assert {path.name for path in tmp_path.iterdir()} == {"model.mlpackage"}

    def another(*_: object, **__: object) -> tuple[object, ...]:
        return (torch.zeros(3, 2).numpy(),)

    monkeypatch.setattr(InterpreterSession, "run", another)
    assert target.explain(lowered, model) is None


def test_lower_refuses_with_a_reason_when_a_step_of_our_own_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(lowering, "_capture", broken)
    model = from_module(nn.Linear(4, 2), [TensorSpec(name="x", shape=(4,))])
    with pytest.raises(TargetError, match="IndexError: list index out of range"):
        CoremlTarget().lower(model, tmp_path, name="model")
