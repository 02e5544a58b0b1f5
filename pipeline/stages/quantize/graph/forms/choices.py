"""``where(choice, x, c)`` with a number c as the same with a tensor: Core ML's converter knows that form alone."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from pipeline.stages.quantize.graph.capabilities import aten
from pipeline.stages.quantize.graph.nodes import add_parameter


def numbers_to_tensors(graph: GraphModule) -> int:
    """Rewrite every such choice in place; how many there were."""
    choices = [node for node in graph.graph.nodes if node.target == aten.where.ScalarOther]
    for node in choices:
        choice, value, number = node.args
        with graph.graph.inserting_before(node):
            held = add_parameter(graph, f"{node.name}_other", torch.tensor(number, dtype=node.meta["val"].dtype))
        node.target, node.args = aten.where.self, (choice, value, held)
    return len(choices)
