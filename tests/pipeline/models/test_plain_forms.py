"""Plain forms: the captured program is PyTorch's own function, and has no divisor and no ``alpha`` left."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core import TensorSpec
from pipeline.models.capture import capture
from pipeline.models.load import from_module
from pipeline.stages.quantize.graph.canonical import canonical_graph


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


class Attending(nn.Module):
    """torch's fused attention leaves its result in the order in which ``view`` can join the heads."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = x.view(-1, 6, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mask = torch.full((6, 6), -1e4).triu(1)
        joined = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).reshape(-1, 6, 8)
        return torch.add(joined, 1.0, alpha=2)


def test_attention_can_still_be_taken_apart() -> None:
    x = torch.randn(4, 6, 24)
    graph = canonical_graph(from_module(Attending(), [TensorSpec(name="x", shape=(6, 24))]))
    assert "attention" not in str(graph.graph)
    torch.testing.assert_close(graph(x), Attending()(x))


class Grouped(nn.Module):
    """Four heads, of which each two share their keys and values."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            x[..., a:b].view(-1, 5, (b - a) // 3, 3).transpose(1, 2) for a, b in ((0, 12), (12, 18), (18, 24))
        )
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)


def test_heads_that_share_keys_get_a_copy_of_them() -> None:
    program = capture(Grouped(), (TensorSpec(name="x", shape=(5, 24)),))
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(program.module()(x), Grouped()(x))
    (attention,) = program.graph.find_nodes(
        op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default
    )
    assert not attention.kwargs.get("enable_gqa")


class Bitwise(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return x & y, x | y, x ^ y, x & 3, x | 4, x ^ 5, x << y % 5, x >> y % 5, x << 2, (x > 3) & (y > 2)


def test_operators_of_bits_have_the_names_of_functions() -> None:
    specs = tuple(TensorSpec(name=name, shape=(6,), dtype="int64") for name in "xy")
    program = capture(Bitwise(), specs)
    values = torch.randint(0, 99, (2, 3, 6))
    for expected, got in zip(Bitwise()(*values), program.module()(*values), strict=True):
        torch.testing.assert_close(got, expected)
    assert not [node for node in program.graph.nodes if "__" in str(node.target)]
