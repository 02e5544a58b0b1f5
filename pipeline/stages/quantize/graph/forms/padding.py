"""Padding becomes a setting of the convolution that reads it, where it is zeros and the same on both sides.

``padding="same"`` is written as numbers first. What a convolution cannot hold, such as one row more at the end than at
the start, stays an operator before it, which moves integers.
"""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from pipeline.stages.quantize.graph.capabilities import PADS, aten
from pipeline.stages.quantize.graph.nodes import argument

NAMED = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}
"""Convolutions whose padding is ``"same"`` or ``"valid"``, and the same with numbers."""

PADDED = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)


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


def pads_to_convolutions(graph: GraphModule) -> int:
    """Let convolutions pad for themselves, in place; how many pads are gone."""
    pads = [node for node in graph.graph.nodes if node.target in PADS]
    count = sum(_absorb(node) for node in pads)
    graph.graph.eliminate_dead_code()
    return count


def _absorb(pad: Node) -> bool:
    """Give a pad to the convolutions that read it, where all can take it; whether they did."""
    arguments: Any = pad.args
    source, widths = arguments[:2]
    starts, ends = widths[0::2], widths[1::2]
    readers: list[Any] = list(pad.users)
    fits = (
        is_zero_pad(pad)
        and starts == ends
        and all(isinstance(width, int) and width >= 0 for width in widths)
        and readers
        and all(
            reader.target in PADDED and reader.args[0] is pad and reader.meta["val"].ndim == len(starts) + 2
            for reader in readers
        )
        and source.meta["val"].ndim == len(starts) + 2
    )
    if not fits:
        return False
    for reader in readers:
        own = _per_axis(argument(reader, 4, 0), len(starts))
        together = [before + more for before, more in zip(own, reversed(starts), strict=True)]
        stride, dilation = (_per_axis(argument(reader, index, 1), len(starts)) for index in (3, 5))
        bias, groups = argument(reader, 2), argument(reader, 6, 1)
        reader.args = (source, reader.args[1], bias, stride, together, dilation, groups)
    return True


def is_zero_pad(pad: Node) -> bool:
    """Whether a pad writes zeros."""
    mode, value = (
        (argument(pad, 2, "constant"), argument(pad, 3, 0))
        if pad.target == aten.pad.default
        else (
            "constant",
            argument(pad, 2, 0),
        )
    )
    return mode == "constant" and value == 0


def _per_axis(value: Any, spatial: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * spatial if len(values) == 1 else values
