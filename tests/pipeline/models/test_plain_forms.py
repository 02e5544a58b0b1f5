"""Plain forms: the captured program is PyTorch's own function, and has no divisor and no ``alpha`` left."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core import TensorSpec
from pipeline.models.capture import capture


class Pool(nn.Module):
    def __init__(self, *arguments: object) -> None:
        super().__init__()
        self.arguments = arguments

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride, padding, ceil_mode = self.arguments
        return F.avg_pool2d(x, kernel, stride, padding, ceil_mode, divisor_override=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_the_divisor_becomes_a_product_for_any_window(ceil_mode: bool) -> None:
    for kernel, stride, padding in itertools.product((2, (3, 2)), (1, 4), (0, 1)):
        pool = Pool(kernel, stride, padding, ceil_mode)
        program = capture(pool, (TensorSpec(name="x", shape=(3, 7, 8)),))
        x = torch.randn(2, 3, 7, 8)
        torch.testing.assert_close(program.module()(x), pool(x))
        pools = [node for node in program.graph.nodes if node.target == torch.ops.aten.avg_pool2d.default]
        assert pools
        assert all(len(node.args) < 7 or node.args[6] is None for node in pools)


class Weighted(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = x.flip(1)
        return torch.add(x, y, alpha=3), torch.sub(x, y, alpha=-0.5), x + y


def test_alpha_becomes_a_product() -> None:
    program = capture(Weighted(), (TensorSpec(name="x", shape=(5,)),))
    x = torch.randn(2, 5)
    for expected, got in zip(Weighted()(x), program.module()(x), strict=True):
        torch.testing.assert_close(got, expected)
    assert not any("alpha" in node.kwargs for node in program.graph.nodes)
