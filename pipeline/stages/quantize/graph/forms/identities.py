"""Operators that change nothing are removed: a product with ones, a sum with zeros, a choice that is always the same.

They come from masks that are constants and mask nothing, once constants are computed.
"""

from __future__ import annotations

from torch import Tensor
from torch.fx import GraphModule, Node

from pipeline.stages.quantize.graph.capabilities import Operator, aten, operator_of
from pipeline.stages.quantize.graph.nodes import tensor_of

NEUTRAL: dict[Operator, int] = {aten.mul.Tensor: 1, aten.add.Tensor: 0}
"""The number with which an operator gives its other operand back."""


def remove_identities(graph: GraphModule) -> int:
    """Let the readers of such an operator read what it reads, in place; how many are gone."""
    count = 0
    for node in list(graph.graph.nodes):
        kept = _kept(graph, node)
        if kept is not None and _alike(kept, node):
            node.replace_all_uses_with(kept)
            graph.graph.erase_node(node)
            count += 1
    return count


def _kept(graph: GraphModule, node: Node) -> Node | None:
    """The operand that an operator gives back as it is; None where it computes something."""
    neutral = NEUTRAL.get(operator_of(node))
    if neutral is not None and len(node.args) == 2 and not node.kwargs:
        for kept, other in (node.args, node.args[::-1]):
            if isinstance(kept, Node) and isinstance(other, Node) and _all(graph, other, neutral):
                return kept
    if node.target in (aten.where.self, aten.where.ScalarOther):
        choice, first = node.args[0], node.args[1]
        if isinstance(choice, Node) and isinstance(first, Node) and _all(graph, choice, 1):
            return first
    return None


def _all(graph: GraphModule, node: Node, number: int) -> bool:
    return node.op == "get_attr" and bool((tensor_of(graph, node) == number).all())


def _alike(one: Node, other: Node) -> bool:
    """Whether two values have one shape and one dtype, so that nothing was broadcast or converted."""
    first, second = one.meta.get("val"), other.meta.get("val")
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return False
    return first.dtype == second.dtype and [str(size) for size in first.shape] == [str(size) for size in second.shape]
