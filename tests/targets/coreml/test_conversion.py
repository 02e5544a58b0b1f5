"""The converter's errors, the interface's names and outputs, and equal files of equal runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.core import TargetError, TensorSpec
from pipeline.target import files_of
from targets.coreml import CoremlTarget, conversion
from tests.targets.coreml.programs import HandQuantized, model_of

VECTOR = TensorSpec(name="x", shape=(4,))


class Outputs(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(4, 3), function

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.linear(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda _, y: (y, y),
        lambda x, y: (y, x),
        lambda _, y: (y, y.argmax(-1)),
        lambda _, y: (y > 0, y),
        lambda x, _: (x, x),
    ],
    ids=["twice", "an input", "integers", "truth values", "an input twice"],
)
def test_every_output_of_the_model_is_one_of_the_package(
    function: Callable[[Tensor, Tensor], Any], tmp_path: Path
) -> None:
    model = dataclasses.replace(model_of(Outputs(function), VECTOR), outputs=("one", "other"))
    target = CoremlTarget()
    lowered = target.lower(model, tmp_path, name="model")
    x = torch.randn(3, 4)

    found, expected = target.load(lowered, threads=1).run((x.numpy(),)), model.module(x)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.detach().numpy(), atol=1e-6)
        assert np.issubdtype(one.dtype, np.floating) == other.is_floating_point()
    assert target.open(lowered.path).outputs == ("one", "other")


@pytest.mark.parametrize("name", ["my out", "tensor", "2nd", "a.b-c", "x y"])
def test_session_finds_outputs_whose_names_the_converter_replaces(name: str, tmp_path: Path) -> None:
    spec = TensorSpec(name="x y", shape=(4,))
    model = dataclasses.replace(model_of(nn.Linear(4, 3), spec), outputs=(f"{name}!",))
    target = CoremlTarget()
    session = target.load(target.lower(model, tmp_path, name="model"), threads=1)
    x = torch.randn(2, 4)

    np.testing.assert_allclose(session.run((x.numpy(),))[0], model.module(x).detach().numpy(), atol=1e-6)


def test_session_refuses_to_cut_a_batch_that_an_output_has_no_axis_for(tmp_path: Path) -> None:
    target = CoremlTarget()
    lowered = target.lower(model_of(Outputs(lambda _, y: y.sum()), VECTOR), tmp_path, name="model")
    session = target.load(lowered, threads=1)

    assert session.run((np.ones((1, 4), np.float32),))[0].shape == ()
    with pytest.raises(TargetError, match="give a batch of 1 or 32"):
        session.run((np.ones((2, 4), np.float32),))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_lower_refuses_inputs_that_core_ml_does_not_take(dtype: Any, tmp_path: Path) -> None:
    model = model_of(nn.Identity(), TensorSpec(name="pixels", shape=(3, 4, 4), dtype=dtype))
    with pytest.raises(TargetError, match=f"takes no {dtype} tensors, as input 'pixels' is"):
        CoremlTarget().lower(model, tmp_path, name="model")


def test_errors_name_the_operator_that_the_converter_was_at() -> None:
    class Node:
        kind, name = "some_operator", "layer_3"

    def convert_single_node(node: Node) -> None:
        for _ in None:  # type: ignore[attr-defined]  # as the converter does
            raise AssertionError(node)

    message = "cannot convert some_operator 'layer_3': TypeError: 'NoneType' object"
    with pytest.raises(TargetError, match=message), conversion.errors("model"):
        convert_single_node(Node())


def test_equal_runs_give_equal_files(tmp_path: Path) -> None:
    packages = []
    for folder in (tmp_path / "one", tmp_path / "other"):
        lowered = CoremlTarget().lower(model_of(HandQuantized(), quantized=True), folder, name="model")
        packages.append({file.relative_to(folder): file.read_bytes() for file in files_of(lowered.path)})
    assert packages[0] == packages[1]
