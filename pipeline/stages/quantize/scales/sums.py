"""Scales with which no sum falls midway between two integers.

A scale has few significant bits (see `numbers.representable`), so a sum of two dequantized tensors is a fraction with
a small denominator, and one value in some thousands lies exactly midway between two of the integers it is to become.
Runtimes do not agree on those: they round before or after they add the zero point, to the even integer or away from
zero. Behind three residual additions and their layers that was 40 dB of parity for a MobileNetV3, where 50 are left
when no sum is a tie.

Let every scale of an addition be a whole multiple of one power of two, the total's an odd one. In that unit the sum is
an integer, and so twice the sum is even; a tie is half of an odd multiple of the total's scale, and so twice a tie is
odd. They never meet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch.fx import GraphModule, Node

from pipeline.stages.quantize.graph.capabilities import aten, kind_of
from pipeline.stages.quantize.scales.grids import ActivationGrid, FixedGrid
from pipeline.stages.quantize.scales.numbers import SIGNIFICANT_BITS, divides_exactly

Grid = TypeVar("Grid", ActivationGrid, FixedGrid)

ADDITIONS = (aten.add.Tensor, aten.sub.Tensor)
SCALE_GROWTH = 1 / 32
"""How much a scale may grow. One that would have to grow by more stays: it is small beside the others of its group."""


@dataclass(frozen=True, eq=False)
class Sum:
    """The grids of an addition: of what it adds, and of what it gives."""

    terms: tuple[ActivationGrid, ...]
    total: ActivationGrid


def sums_of(prepared: GraphModule) -> tuple[Sum, ...]:
    """The additions of a prepared graph whose grids may all be moved."""
    found = []
    for node in prepared.graph.nodes:
        if node.target in ADDITIONS and len(node.all_input_nodes) == 2:
            places = (*node.all_input_nodes, quantizer_of(node))
            *terms, total = (grid_at(prepared, place, ActivationGrid) for place in places)
            if total is not None and all(type(grid) is ActivationGrid for grid in (*terms, total)):
                found.append(Sum(tuple(grid for grid in terms if grid is not None), total))
    return tuple(found)


def avoid_ties(sums: Sequence[Sum]) -> dict[ActivationGrid, float]:
    """Widen the grids of additions so that none gives a tie; additions that share a grid are treated together.

    Returns:
        By what multiples the scale of each of them may grow further without making ties.
    """
    groups: list[set[ActivationGrid]] = []
    for addition in sums:
        joined = {*addition.terms, addition.total}
        for group in [group for group in groups if group & joined]:
            groups.remove(group)
            joined |= group
        groups.append(joined)
    totals = {addition.total for addition in sums}
    growth: dict[ActivationGrid, float] = {}
    for group in groups:
        grids = sorted(group, key=lambda grid: grid.scale)
        scales = tie_free([grid.scale for grid in grids], [grid in totals for grid in grids])
        for grid, scale in zip(grids, scales, strict=True):
            grid.widen(scale)
            growth[grid] = unit_of(scales) * (2 if grid in totals else 1)  # what is odd stays odd
    return growth


def tie_free(scales: Sequence[float], total: Sequence[bool]) -> list[float]:
    """The next scales that are multiples of one power of two, and odd multiples where they are of a total.

    >>> tie_free([0.5, 0.25, 0.75], [False, False, True])
    [0.5, 0.25, 0.75146484375]
    """
    unit = unit_of(scales)
    steps = [_next(math.ceil(scale / unit), odd=odd) for scale, odd in zip(scales, total, strict=True)]
    return [
        step * unit if step * unit <= scale * (1 + SCALE_GROWTH) else scale
        for scale, step in zip(scales, steps, strict=True)
    ]


def unit_of(scales: Sequence[float]) -> float:
    """What the last significant bit of the largest scale stands for."""
    return float(2.0 ** (math.frexp(max(scales))[1] - SIGNIFICANT_BITS))


def _next(step: int, *, odd: bool) -> int:
    """The first multiple from ``step`` up that serves; 2^11 - 1, the last, does."""
    while (odd and step % 2 == 0) or not divides_exactly(np.array(step, np.float64)):
        step += 1
    return step


def quantizer_of(operator: Node) -> Node:
    """Who takes the result of an operator: the module behind it, or behind the clamp that fuses into it."""
    reader = next(iter(operator.users))
    return next(iter(reader.users)) if kind_of(reader) == "clamp" else reader


def grid_at(prepared: GraphModule, place: Node, kind: type[Grid]) -> Grid | None:
    """The grid at a place of a prepared graph, where there is one of this kind."""
    module = prepared.get_submodule(str(place.target)) if place.op == "call_module" else None
    return module if isinstance(module, kind) else None
