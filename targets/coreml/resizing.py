"""Interpolations that the converter does not have: bicubic, antialiased, and to sizes that are no whole multiple.

Interpolation along one axis is a matrix that does not depend on the values, so its columns are what torch's own
operator gives for unit vectors. Where each output is one input (nearest), the matrix is a list of positions.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

logger = logging.getLogger(__name__)

aten = torch.ops.aten

SMOOTH = {
    aten.upsample_bicubic2d.vec: aten.upsample_bicubic2d.default,
    aten.upsample_bilinear2d.vec: aten.upsample_bilinear2d.default,
    aten._upsample_bicubic2d_aa.vec: aten._upsample_bicubic2d_aa.default,
    aten._upsample_bilinear2d_aa.vec: aten._upsample_bilinear2d_aa.default,
}
NEAREST = {
    aten.upsample_nearest1d.vec: aten.upsample_nearest1d.default,
    aten.upsample_nearest2d.vec: aten.upsample_nearest2d.default,
    aten._upsample_nearest_exact1d.vec: aten._upsample_nearest_exact1d.default,
    aten._upsample_nearest_exact2d.vec: aten._upsample_nearest_exact2d.default,
}
CONVERTED = (aten.upsample_bilinear2d.vec, aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec)
"""What the converter has an operator for, which is right where the output is a whole multiple of the input."""


def is_rewritten(node: Node) -> bool:
    """Whether `resize` replaces a node: an interpolation of a fixed size that the converter lacks or gets wrong."""
    if node.target not in (*SMOOTH, *NEAREST):
        return False
    before, after = _sizes(node)
    if not all(isinstance(size, int) for size in (*before, *after)):
        return False
    whole = all(large % small == 0 for small, large in zip(before, after, strict=True))
    if node.target == aten.upsample_bilinear2d.vec:
        return not whole and node.args[1] is None
    return not (node.target in CONVERTED and whole)


def resize(graph: GraphModule) -> None:
    """Write every such interpolation as matrix products, or as a choice of positions; in place."""
    for node in [node for node in graph.graph.nodes if is_rewritten(node)]:
        value: Any = node.args[0]
        with graph.graph.inserting_before(node):
            for axis in range(len(_sizes(node)[0])):
                value = _along(graph, node, value, axis)
        node.replace_all_uses_with(value)
        graph.graph.erase_node(node)
        logger.debug("%s: written as products or positions", node.name)
    graph.recompile()


def _along(graph: GraphModule, node: Node, value: Node, axis: int) -> Node:
    """The value resized along one spatial axis."""
    matrix = weights(node, axis)
    name = f"{node.name}_axis_{axis}"
    spatial = len(_sizes(node)[0])
    if node.target in NEAREST:
        graph.register_buffer(name, matrix.argmax(1))
        return graph.graph.call_function(aten.index_select.default, (value, 2 + axis, graph.graph.get_attr(name)))
    last = axis == spatial - 1
    graph.register_buffer(name, matrix.T.contiguous() if last else matrix[None, None])
    factor = graph.graph.get_attr(name)
    return graph.graph.call_function(aten.matmul.default, (value, factor) if last else (factor, value))


def weights(node: Node, axis: int) -> Tensor:
    """The matrix ``(output size, input size)`` of an interpolation along one of its axes."""
    before, after = _sizes(node)
    spatial = len(before)
    size = before[axis]
    shape, to = [2] * spatial, [2] * spatial  # the other axis stays as it is; the kernels mistake an axis of size 1
    shape[axis], to[axis] = size, after[axis]
    units = torch.eye(size).reshape(size, size, 1) if axis == 0 else torch.eye(size).reshape(size, 1, size)
    units = (units if spatial == 2 else torch.eye(size)).expand(size, *shape)[None].contiguous()
    arguments: Any = node.args
    factors = arguments[-1] if len(arguments) > 2 and arguments[1] is None else None
    scales: list[float | None] = [None] * spatial
    if factors is not None:
        scales = [1.0] * spatial
        scales[axis] = factors[axis]
    corners = (arguments[2],) if node.target in SMOOTH else ()
    kernels: dict[Any, Any] = {**SMOOTH, **NEAREST}
    moved: Tensor = kernels[node.target](units, to, *corners, *scales)
    line = moved[0] if spatial == 1 else moved[0].select(2 - axis, 0)
    return line.T.contiguous()


def _sizes(node: Node) -> tuple[list[Any], list[Any]]:
    """Spatial sizes before and after."""
    source: Any = node.args[0]
    return list(source.meta["val"].shape[2:]), list(node.meta["val"].shape[2:])
