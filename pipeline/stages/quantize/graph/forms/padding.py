"""Padding becomes a setting of the convolution or max-pool that reads it, where that pads both sides alike.

``padding="same"`` is written as numbers first. What they cannot hold, such as one row more at the end than at the
start, stays an operator before them, which moves integers; a target may be able to hold it.

A max-pool never selects a value below all others. Minus infinity, or a number that means it, is written as zero where
the values are never negative, because any grid holds zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.fx import GraphModule, Node

from pipeline.stages.quantize.graph.capabilities import MAX_POOLS, PADS, aten, kind_of
from pipeline.stages.quantize.graph.nodes import argument, pad_value

NAMED = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}
"""Convolutions whose padding is ``"same"`` or ``"valid"``, and the same with numbers."""

PADDED = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)

FAR = -1e3
"""A number that is there to be below all values: nobody writes it to be selected."""


def number_paddings(graph: GraphModule) -> int:
    """Write ``padding="same"`` and ``"valid"`` as numbers, in place; how many there were.

    ``same`` pads ``dilation * (kernel - 1)`` in all, the larger half at the end.
    """
    named = [node for node in graph.graph.nodes if node.target in NAMED]
    for node in named:
        kernel = node.args[1].meta["val"].shape[2:]
        spatial = len(kernel)
        dilation = _per_axis(argument(node, 5, 1), spatial)
        same = argument(node, 4, "valid") == "same"
        totals = [step * (size - 1) if same else 0 for step, size in zip(dilation, kernel, strict=True)]
        inside, beyond = [total // 2 for total in totals], [total % 2 for total in totals]
        source = node.args[0]
        if any(beyond):
            widths = [side for extra in reversed(beyond) for side in (0, extra)]
            with graph.graph.inserting_before(node):
                padded = graph.graph.call_function(aten.constant_pad_nd.default, (source, widths, 0.0))
            value = source.meta["val"]
            larger = [size + extra for size, extra in zip(value.shape[2:], beyond, strict=True)]
            padded.meta = {**node.meta, "val": value.new_empty([*value.shape[:2], *larger])}
            source = padded
        stride = _per_axis(argument(node, 3, 1), spatial)
        node.target = NAMED[node.target]
        node.args = (source, node.args[1], argument(node, 2), stride, inside, dilation, argument(node, 6, 1))
    return len(named)


def lowest_pads(graph: GraphModule) -> int:
    """Write pads that max-pools never select as zero or minus infinity, in place; how many there were."""
    pads = [node for node in graph.graph.nodes if node.target in PADS and is_read_by_max_pools(node)]
    low = [node for node in pads if (value := pad_value(node)) is not None and value <= FAR]
    for node in low:
        lowest = 0.0 if _is_never_negative(node.args[0]) else -math.inf
        node.args = (*node.args[:2], *(["constant"] if node.target == aten.pad.default else []), lowest)
    return len(low)


def pads_to_readers(graph: GraphModule) -> int:
    """Let convolutions and max-pools pad for themselves, in place; how many pads are gone."""
    pads = [node for node in graph.graph.nodes if node.target in PADS]
    count = sum(_absorb(node) for node in pads)
    graph.graph.eliminate_dead_code()
    return count


def is_read_by_max_pools(node: Node) -> bool:
    """Whether max-pools read a value, and nothing else."""
    return bool(node.users) and all(user.target in MAX_POOLS for user in node.users)


def _absorb(pad: Node) -> bool:
    """Give a pad to the operators that read it, where all can take it; whether they did."""
    arguments: Any = pad.args
    source, widths = arguments[:2]
    starts, ends = widths[0::2], widths[1::2]
    alike = starts == ends and all(isinstance(width, int) and width >= 0 for width in widths)
    readers: list[Any] = list(pad.users)
    if not alike or not readers or not all(_takes(reader, pad, starts[::-1]) for reader in readers):
        return False
    for reader in readers:
        if reader.target in MAX_POOLS:
            kernel, stride = reader.args[1], argument(reader, 2, ())
            reader.args = (source, kernel, stride, _together(reader, 3, starts[::-1]), *reader.args[4:])
        else:
            stride = _per_axis(argument(reader, 3, 1), len(starts))
            weight, bias = reader.args[1], argument(reader, 2)
            reader.args = (source, weight, bias, stride, _together(reader, 4, starts[::-1]), *reader.args[5:])
    return True


def _takes(reader: Node, pad: Node, widths: Sequence[int]) -> bool:
    """Whether an operator can pad its last axes by these widths itself, and would do what the pad does."""
    value, rank = reader.meta["val"], len(widths) + 2
    if reader.args[0] is not pad or pad.meta["val"].ndim != rank or value.ndim != rank:
        return False
    if reader.target in PADDED:
        return pad_value(pad) == 0
    if reader.target not in MAX_POOLS or not _is_below_all(pad):
        return False
    kernel = _per_axis(reader.args[1], len(widths))
    return all(2 * width <= size for width, size in zip(_together(reader, 3, widths), kernel, strict=True))


def _is_below_all(pad: Node) -> bool:
    """Whether a pad writes a number that no value is below."""
    source: Any = pad.args[0]
    number = pad_value(pad)
    return number == -math.inf or (number == 0 and _is_never_negative(source))


def _is_never_negative(node: Node) -> bool:
    """Whether the operators before a value show that it is zero or more."""
    while kind_of(node) == "moves" and len(node.all_input_nodes) == 1 and (pad_value(node) or 0) >= 0:
        (node,) = node.all_input_nodes
    if node.target in (aten.clamp.default, aten.clamp_min.default, aten.hardtanh.default):
        return bool(argument(node, 1, -1) >= 0)
    return node.target in (aten.relu.default, aten.relu6.default, aten.sigmoid.default, aten.softmax.int)


def _together(reader: Node, position: int, widths: Sequence[int]) -> list[int]:
    """The padding that an operator has, and these widths on top."""
    own = _per_axis(argument(reader, position, 0), len(widths))
    return [before + more for before, more in zip(own, widths, strict=True)]


def _per_axis(value: Any, spatial: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * spatial if len(values) == 1 else values
