"""Scales for which no sum falls exactly midway between two integers.

A scale has few significant bits (see `numbers.representable`), so a sum of two dequantized tensors is a fraction with
a small denominator, and one value in several thousand is a tie: exactly midway between two integers of the result.
Runtimes round ties differently: before or after they add the zero point, to the even integer or away from zero. After
three residual additions a MobileNetV3 had 40 dB of parity; without ties it has 50.

Ties are impossible if every scale of an addition is a whole multiple of one power of two, and the total's is an odd
multiple. In that unit the sum is an integer, so twice the sum is even; a tie is half of an odd multiple of the total's
scale, so twice a tie is odd.
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
"""How much a scale may grow. One that would have to grow more is left alone: it is small compared with its group."""


@dataclass(frozen=True, eq=False)
class Sum:
    """The grids of an addition: those of its terms, and that of its total."""

    terms: tuple[ActivationGrid, ...]
    total: ActivationGrid


def sums_of(prepared: GraphModule) -> tuple[Sum, ...]:
    """The additions of a prepared graph whose grids may all be changed."""
    found = []
    for node in prepared.graph.nodes:
        if node.target in ADDITIONS and len(node.all_input_nodes) == 2:
            places = (*node.all_input_nodes, quantizer_of(node))
            *terms, total = (grid_at(prepared, place, ActivationGrid) for place in places)
            if total is not None and all(type(grid) is ActivationGrid for grid in (*terms, total)):
                found.append(Sum(tuple(grid for grid in terms if grid is not None), total))
    return tuple(found)


def avoid_ties(sums: Sequence[Sum]) -> dict[ActivationGrid, float]:
    """Widen the grids of additions so that none produces a tie; additions that share a grid are treated together.

    Returns:
        For each of these grids, the step by which its scale may grow further without producing ties.
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
    """The next larger scales that are multiples of one power of two; those of totals are odd multiples.

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
    """The value of the last significant bit of the largest scale."""
    return float(2.0 ** (math.frexp(max(scales))[1] - SIGNIFICANT_BITS))


def _next(step: int, *, odd: bool) -> int:
    """The first suitable multiple from ``step`` up; 2^11 - 1, the last one, is suitable."""
    while (odd and step % 2 == 0) or not divides_exactly(np.array(step, np.float64)):
        step += 1
    return step


def quantizer_of(operator: Node) -> Node:
    """The node that quantizes an operator's result: it follows the operator, or the clamp that fuses into it."""
    reader = next(iter(operator.users))
    return next(iter(reader.users)) if kind_of(reader) == "clamp" else reader


def grid_at(prepared: GraphModule, place: Node, kind: type[Grid]) -> Grid | None:
    """The grid at a place of a prepared graph, where there is one of this kind."""
    module = prepared.get_submodule(str(place.target)) if place.op == "call_module" else None
    return module if isinstance(module, kind) else None
