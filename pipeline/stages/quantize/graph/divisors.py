"""Divisors and reciprocals: values whose small numbers matter as much as their large ones; a grid rounds these away.

``x * rsqrt(variance + epsilon)`` is an example, as norms that are written by hand compute it. A grid of 256 equal steps
holds the largest variance within a fraction of a percent, and the smallest one as zero; and where one variance is zero,
its reciprocal is so large that all others become zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import GraphModule, Node

from pipeline.stages.quantize.graph.capabilities import WEIGHTED, aten, kind_of
from pipeline.stages.quantize.graph.nodes import is_float_tensor

DIVISIONS = (aten.div.Tensor, aten.div.Tensor_mode)
"""Operators whose second operand is a divisor."""

STEEP = (
    aten.reciprocal.default,
    aten.rsqrt.default,
    aten.sqrt.default,
    aten.log.default,
    aten.log2.default,
    aten.log10.default,
)
"""Functions whose slope grows without limit towards zero."""

EXPLOSIVE = (aten.reciprocal.default, aten.rsqrt.default, aten.exp.default)
"""Functions that are far larger in one place than in most others."""

AVERAGES = (aten.mean.dim, aten.sum.dim_IntList, aten.matmul.default, aten.bmm.default, aten.mm.default)
"""Operators in whose result the errors of what they read cancel out."""

DIVISOR = "a divisor, or what a root or logarithm is taken of: integers would round its small values to zero"
RECIPROCAL = "it reads a reciprocal or an exponential, whose largest value would round most others to zero as integers"


def why_precise(graph: GraphModule) -> dict[Node, str]:
    """Operators with a rule that need more precision than a grid has, and why.

    The search from a divisor to what makes it ends at averages, whose operands may be rounded, and at convolutions and
    linear layers with the clamp that fuses into them: these stay integer operators. The search from a reciprocal to
    what reads it goes past operators that move it, or read nothing else.
    """
    divisors = [value for node in graph.graph.nodes for value in _divisors(node)]
    readers = [user for node in graph.graph.nodes if _is_explosive(node) for user in node.users]
    return dict.fromkeys(_closure(divisors, _makers), DIVISOR) | dict.fromkeys(_closure(readers, _readers), RECIPROCAL)


def _closure(start: list[Node], following: Callable[[Node], list[Node]]) -> set[Node]:
    """Float tensors with a rule that are reached from some."""
    found: set[Node] = set()
    pending = list(start)
    while pending:
        node = pending.pop()
        if node not in found and kind_of(node) is not None and is_float_tensor(node) and not _is_layer(node):
            found.add(node)
            pending += following(node)
    return found


def _makers(value: Node) -> list[Node]:
    return [] if value.target in AVERAGES else value.all_input_nodes


def _readers(value: Node) -> list[Node]:
    return list(value.users) if kind_of(value) == "moves" or len(value.all_input_nodes) == 1 else []


def _divisors(node: Node) -> list[Node]:
    arguments: Any = node.args
    if node.target in DIVISIONS:
        return [each for each in arguments[1:2] if isinstance(each, Node)]
    root = node.target == aten.pow.Tensor_Scalar and isinstance(arguments[1], int | float) and arguments[1] < 1
    return [arguments[0]] if root or node.target in STEEP else []


def _is_explosive(node: Node) -> bool:
    arguments: Any = node.args
    return node.target in EXPLOSIVE or (
        node.target == aten.pow.Tensor_Scalar and isinstance(arguments[1], int | float) and arguments[1] < 0
    )


def _is_layer(value: Node) -> bool:
    if kind_of(value) == "clamp":
        return _is_layer(value.all_input_nodes[0])
    return value.target in WEIGHTED
