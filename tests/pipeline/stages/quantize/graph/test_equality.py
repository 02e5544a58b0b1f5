"""Equality of functions: rounding is none, a wrong constant is one, and a rewrite that breaks a graph is undone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from pipeline import EdgewrightError, TensorSpec, from_module
from pipeline.stages.quantize.graph import canonical
from pipeline.stages.quantize.graph.equality import difference_db, least_sqnr_db


def test_least_sqnr_is_that_of_the_worst_output() -> None:
    good, bad = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.5])
    assert least_sqnr_db([good, good], [good, bad]) == pytest.approx(20.0)


def test_infinities_and_nan_are_no_difference_at_the_same_place() -> None:
    value = torch.tensor([1.0, math.inf, math.nan])
    assert least_sqnr_db([value], [value.clone()]) == math.inf
    assert least_sqnr_db([value], [torch.tensor([1.0, 2.0, math.nan])]) == -math.inf


def test_outputs_of_other_shapes_are_another_function() -> None:
    assert least_sqnr_db([torch.zeros(2)], [torch.zeros(2, 1)]) == -math.inf


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.factor + 1e6) - 1e6


def test_rounding_is_told_from_a_mistake_in_float64() -> None:
    class Reordered(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    x = torch.randn(4, 100)
    assert least_sqnr_db([Scaled(3.0)(x)], [Reordered(3.0)(x)]) < 100  # float32 alone cannot tell
    assert difference_db(Scaled(3.0), Reordered(3.0), (x,)) is None
    assert difference_db(Scaled(3.0), Reordered(3.001), (x,)) == pytest.approx(69.5, abs=1.0)


class Cancelling(nn.Module):
    """The difference of two nearly equal convolutions, which leaves few digits; then their batch norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branch = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        nn.init.normal_(self.branch[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) - self.branch(x * 1.00001)


def test_a_folded_weight_may_lose_the_digits_that_a_network_loses_itself() -> None:
    specs = [TensorSpec(name="x", shape=(3, 6, 6))]
    graph = canonical.canonical_graph(from_module(Cancelling().eval(), specs), inputs=(torch.randn(4, 3, 6, 6),))
    targets = {node.target for node in graph.graph.nodes if node.op == "call_function"}
    assert targets == {torch.ops.aten.conv2d.default, torch.ops.aten.mul.Tensor, torch.ops.aten.sub.Tensor}


def test_an_output_of_rounding_errors_alone_does_not_hide_a_mistake_in_another() -> None:
    class Two(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return (x - x.mean(1, keepdim=True)).mean(1), x * self.factor

    class Reordered(Two):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return (x * 3 - (x * 3).mean(1, keepdim=True)).mean(1) / 3, x * self.factor

    x = torch.randn(4, 100)
    assert difference_db(Two(3.0), Reordered(3.0), (x,)) is None
    assert difference_db(Two(3.0), Reordered(3.001), (x,)) == pytest.approx(69.5, abs=1.0)


def changes(graph: GraphModule) -> int:
    for node in graph.graph.nodes:
        if node.target == torch.ops.aten.relu.default:
            node.target = torch.ops.aten.tanh.default
    return 1


def raises(graph: GraphModule) -> int:
    changes(graph)
    raise ValueError("a form that no one thought of")


@pytest.mark.parametrize(
    ("breaks", "said"), [(changes, "changes is undone"), (raises, "a form that no one thought of")]
)
def test_a_rewrite_that_changes_the_function_or_fails_is_undone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, breaks: Any, said: str
) -> None:
    monkeypatch.setattr(canonical, "REWRITES", (*canonical.REWRITES, breaks))
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    graph = canonical.canonical_graph(from_module(module, [TensorSpec(name="x", shape=(4,))]))
    x = torch.randn(3, 4)
    torch.testing.assert_close(graph(x), module(x))
    assert said in caplog.text


def test_a_module_that_its_graph_does_not_follow_is_refused() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(EdgewrightError, match="computes something else than the module"):
        canonical.canonical_graph(from_module(Noisy(), [TensorSpec(name="x", shape=(4,))]))
