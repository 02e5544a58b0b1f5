"""Names of inputs and outputs, and what onnx and onnxruntime refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import targets
from pipeline.core import Model, TargetError, TensorSpec


class Branches(nn.Module):
    def __init__(self, outputs: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.outputs = nn.Linear(3, 4), outputs

    def forward(self, x: Tensor) -> Any:
        return self.outputs(x, self.linear(x))


def model_of(outputs: Callable[[Tensor, Tensor], Any], *names: str, entry: str = "x") -> Model:
    module = Branches(outputs).eval()
    return Model(module=module, reference=module, inputs=(TensorSpec(name=entry, shape=(3,)),), outputs=names)


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        pytest.param(lambda x, y: (y, x), ("y", "copy"), id="an input"),
        pytest.param(lambda _, y: (y, y), ("one", "two"), id="one value twice"),
        pytest.param(lambda _, y: (y, y * 2), ("my out", "class"), id="a space and a keyword"),
        pytest.param(lambda _, y: (y * 2, y), ("linear", "linear.weight"), id="names of values inside"),
    ],
)
def test_file_has_the_models_names_whatever_they_are(outputs: Any, names: tuple[str, ...], tmp_path: Path) -> None:
    model = model_of(outputs, *names, entry="mul")
    lowered = targets.get("onnx").lower(model, tmp_path, name="model")
    session = onnxruntime.InferenceSession(lowered.path, providers=["CPUExecutionProvider"])
    assert [port.name for port in session.get_inputs()] == ["mul"]
    assert tuple(port.name for port in session.get_outputs()) == names
    x = torch.randn(5, 3)
    for expected, found in zip(model.module(x), session.run(None, {"mul": x.numpy()}), strict=True):
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-5)


def test_lower_refuses_one_name_for_an_input_and_an_output(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="'x'"):
        targets.get("onnx").lower(model_of(lambda x, y: y + x.sum(), "x"), tmp_path, name="model")


def autocast(x: Tensor, y: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return torch.conv1d(x[:, None], y.new_ones(2, 1, 2)).float() + y.mean()


def test_lower_names_the_operator_that_onnx_refuses_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"op_type:Conv.*bfloat16[\s\S]*fix: compute in float32"):
        targets.get("onnx").lower(model_of(autocast, "y"), tmp_path, name="model")
    assert list(tmp_path.iterdir()) == []


def test_load_names_the_operator_that_onnxruntime_has_no_kernel_for(tmp_path: Path) -> None:
    model = model_of(lambda x, y: torch.conv1d(x[:, None].double(), y.new_ones(2, 1, 2).double()).float(), "y")
    target = targets.get("onnx")
    lowered = target.lower(model, tmp_path, name="model")
    for use in (lambda: target.load(lowered, threads=1), lambda: target.placement(lowered)):
        with pytest.raises(TargetError, match="Conv"):
            use()


def test_run_says_what_is_wrong_with_its_inputs(tmp_path: Path) -> None:
    target = targets.get("onnx")
    session = target.load(target.lower(model_of(lambda _, y: y, "y"), tmp_path, name="model"), threads=1)
    with pytest.raises(TargetError, match="cannot run it"):
        session.run((np.zeros((1, 4), np.float32),))
