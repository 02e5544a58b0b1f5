"""Tensors of six axes and more: the same function with five, in any order of axes, and a package that converts."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.core import TensorSpec
from pipeline.models.capture import capture
from targets.coreml import CoremlTarget
from targets.coreml.ranks import has_many_axes, lower_ranks
from tests.targets.coreml.programs import model_of


class Permuted(nn.Module):
    def __init__(self, sizes: list[int], order: list[int]) -> None:
        super().__init__()
        self.sizes, self.order = sizes, order

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.reshape(x.shape[0], *self.sizes).permute(self.order).reshape(x.shape[0], -1)


class Parts(nn.Module):
    """Queries and keys of windows, as Swin's code takes them apart."""

    def forward(self, x: Tensor) -> Tensor:
        q, k = x.relu().view(-1, 2, 2, 3, 2, 2, 4).permute(4, 0, 1, 3, 5, 2, 6).unbind(0)
        return q.reshape(x.shape[0], -1) - (k * 0.5).contiguous().select(3, 0).flatten(1).repeat(1, 2)


@pytest.mark.parametrize("batch_size", [1, None])
def test_any_order_of_axes_is_reached_with_five(batch_size: int | None) -> None:
    chance = random.Random(0)
    for count in (5, 5, 5, 6, 7):
        sizes, order = [chance.choice([1, 2, 3]) for _ in range(count)], list(range(1, count + 1))
        chance.shuffle(order)
        module, size = Permuted(sizes, [0, *order]), math.prod(sizes)
        graph = capture(module, (TensorSpec(name="x", shape=(size,)),), batch_size=batch_size).module(
            check_guards=False
        )
        assert lower_ranks(graph) > 0  # type: ignore[arg-type]  # torch says Module of what is a GraphModule
        assert not any(map(has_many_axes, graph.graph.nodes))  # type: ignore[union-attr, arg-type]
        x = torch.randn(batch_size or 3, size)
        assert torch.equal(graph(x), module(x))


def test_parts_of_many_axes_are_chosen_with_three() -> None:
    graph = capture(Parts(), (TensorSpec(name="x", shape=(2, 2, 3, 16)),), batch_size=1).module(check_guards=False)
    assert lower_ranks(graph) > 0  # type: ignore[arg-type]
    x = torch.randn(1, 2, 2, 3, 16)
    torch.testing.assert_close(graph(x), Parts()(x))


def test_lower_converts_a_shuffle_that_is_written_by_hand(tmp_path: Path) -> None:
    class Shuffle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            n, _, height, width = x.shape
            return x.view(n, 3, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3).reshape(n, 3, 2 * height, 2 * width)

    target = CoremlTarget()
    model = model_of(Shuffle(), TensorSpec(name="x", shape=(12, 4, 5)))
    x = torch.randn(1, 12, 4, 5)
    (got,) = target.load(target.lower(model, tmp_path, name="shuffle"), threads=1).run((x.numpy(),))
    torch.testing.assert_close(torch.from_numpy(got), nn.functional.pixel_shuffle(x, 2))
