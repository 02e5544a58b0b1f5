"""Tensors of more than five axes, which Core ML does not have: windows, patches and pixel shuffles written by hand.

Such a tensor is nearly always made by a view, permuted, and viewed again. What is stored of it here is a tensor of few
axes with the same numbers in the same order; a permutation moves blocks of axes that stay beside each other.
"""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.fx import GraphModule, Node

from targets.coreml.constants import DEQUANTIZE

logger = logging.getLogger(__name__)
aten = torch.ops.aten

MOST_AXES = 5
VIEWS = (
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints, aten.clone.default,
    aten.contiguous.default, aten.unflatten.int, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims,
)  # fmt: skip
"""Operators that keep all numbers in their order."""
ONE_BY_ONE = (*DEQUANTIZE, torch.ops.quantized_decomposed.quantize_per_tensor.default, aten.relu.default)
"""Operators on one tensor and numbers that treat every number alike."""
SCALED = (aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor)
"""The same, where the second operand is a number."""


@dataclass(frozen=True)
class _Flat:
    """A tensor of many axes: a node with its numbers in row-major order, and its own sizes."""

    numbers: Node
    sizes: tuple[Any, ...]


def has_many_axes(node: Node) -> bool:
    """Whether a node gives a tensor that Core ML cannot hold."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.ndim > MOST_AXES


def lower_ranks(graph: GraphModule) -> int:
    """Compute with at most five axes what lies between views, in place; how many tensors of more axes are gone.

    A tensor that another operator reads stays, and the conversion refuses it.
    """
    flat: dict[Node, _Flat] = {}
    many = [node for node in graph.graph.nodes if has_many_axes(node)]
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not (has_many_axes(node) or any(map(has_many_axes, _sources(node)))):
            continue
        with graph.graph.inserting_before(node):
            found = _with_few_axes(graph, node, flat)
            if found is not None and has_many_axes(node):
                flat[node] = found
            elif found is not None:
                node.replace_all_uses_with(_viewed(graph, found.numbers, found.sizes))
    graph.graph.eliminate_dead_code()
    graph.recompile()
    left = sum(node in many for node in graph.graph.nodes)
    logger.debug("%d of %d tensors of more than %d axes remain", left, len(many), MOST_AXES)
    return len(many) - left


def _sources(node: Node) -> list[Node]:
    """What a node reads; of a part of several results, what the operator read that gave them."""
    parts = node.target is operator.getitem
    return [each for source in node.all_input_nodes for each in (source.all_input_nodes if parts else [source])]


def _with_few_axes(graph: GraphModule, node: Node, flat: dict[Node, _Flat]) -> _Flat | None:
    """What an operator gives, as a flat tensor; None for an operator that is not known here."""
    value, arguments = _sources(node)[0], cast("tuple[Any, ...]", node.args)
    if has_many_axes(value) and value not in flat:
        return None
    source = flat.get(value) or _Flat(value, _sizes(value))
    if node.target in VIEWS:
        return _Flat(source.numbers, _sizes(node))
    if node.target in ONE_BY_ONE or (node.target in SCALED and isinstance(arguments[1], int | float)):
        return _Flat(graph.graph.call_function(node.target, (source.numbers, *arguments[1:])), source.sizes)
    if node.target in (aten.permute.default, aten.transpose.int):
        return _permuted(graph, source, _order(node, len(source.sizes)))
    if node.target == aten.select.int:
        return _selected(graph, source, arguments[1], arguments[2])
    if node.target is operator.getitem and arguments[0].target == aten.unbind.int:
        return _selected(graph, source, (*arguments[0].args, 0)[1], arguments[1])
    return None


def _sizes(node: Node) -> tuple[Any, ...]:
    return tuple(node.meta["val"].shape)


def _order(node: Node, count: int) -> list[int]:
    """The axes of the source in the order of the result."""
    arguments: Any = node.args
    if node.target == aten.permute.default:
        return [axis % count for axis in arguments[1]]
    order, (one, other) = list(range(count)), (axis % count for axis in arguments[1:])
    order[one], order[other] = other, one
    return order


def _viewed(graph: GraphModule, numbers: Node, sizes: Sequence[Any]) -> Node:
    """The same numbers with other sizes, of which one may vary."""
    known = [size if isinstance(size, int) else -1 for size in sizes]
    return graph.graph.call_function(aten.reshape.default, (numbers, known))


def _selected(graph: GraphModule, source: _Flat, axis: int, index: int) -> _Flat:
    sizes = list(source.sizes)
    axis %= len(sizes)
    three = _viewed(graph, source.numbers, (math.prod(sizes[:axis]), sizes[axis], math.prod(sizes[axis + 1 :])))
    chosen = graph.graph.call_function(aten.select.int, (three, 1, index))
    return _Flat(chosen, (*sizes[:axis], *sizes[axis + 1 :]))


def _permuted(graph: GraphModule, source: _Flat, order: list[int]) -> _Flat:
    """The tensor with its axes in another order.

    Axes that stay beside each other move as one. Where more than five remain, one block moves at a time.
    """
    numbers, sizes = source.numbers, source.sizes
    while (runs := _runs(order)) != [list(range(len(sizes)))]:
        blocks = sorted(runs)
        if len(blocks) > MOST_AXES:
            blocks = _first_move(order)
        moved = [blocks.index(run) for run in runs] if len(runs) <= MOST_AXES else [0, 2, 1, 3]
        merged = _viewed(graph, numbers, [math.prod(sizes[axis] for axis in block) for block in blocks])
        numbers = graph.graph.call_function(aten.permute.default, (merged, moved))
        arranged = [axis for block in moved for axis in blocks[block]]
        sizes = tuple(sizes[axis] for axis in arranged)
        order = [arranged.index(axis) for axis in order]
    return _Flat(numbers, sizes)


def _runs(order: list[int]) -> list[list[int]]:
    """The order, cut where an axis does not follow the one before it."""
    runs: list[list[int]] = []
    for axis in order:
        if runs and axis == runs[-1][-1] + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    return runs


def _first_move(order: list[int]) -> list[list[int]]:
    """Four blocks of axes, some empty, of which the third has to move in front of the second."""
    place = next(index for index, axis in enumerate(order) if index != axis)
    moving = next(run for run in _runs(order) if run[0] == order[place])
    everything = list(range(len(order)))
    return [everything[:place], everything[place : moving[0]], moving, everything[moving[-1] + 1 :]]
