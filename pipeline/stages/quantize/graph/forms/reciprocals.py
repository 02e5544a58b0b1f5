"""``x / c`` as ``x * (1 / c)`` for numbers c: integer runtimes multiply, and few of them divide."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from pipeline.stages.quantize.graph.capabilities import aten


def multiply_by_reciprocals(graph: GraphModule) -> int:
    """Rewrite every division by a number in place; return how many."""
    divisions = [
        node for node in graph.graph.nodes if node.target == aten.div.Tensor and not isinstance(node.args[1], Node)
    ]
    for node in divisions:
        node.target = aten.mul.Tensor
        node.args = (node.args[0], 1 / node.args[1])
    return len(divisions)
