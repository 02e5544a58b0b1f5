"""What depends on parameters alone is computed once: weights behind a parametrization, masks, positions.

Integer kernels need weights that are there, and a table costs less than the operators that would make it for every
sample. Nothing random is computed, and nothing that is far larger than what it is made of.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from pipeline.stages.quantize.graph.nodes import add_parameter

logger = logging.getLogger(__name__)

LARGEST = 4_000_000
"""Elements that a computed constant may have; a larger one stays an operator unless a weight is as large itself."""


def compute_constants(graph: GraphModule) -> int:
    """Replace every operator that reads constants alone, in place; how many results that others read there were."""
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default):
        graph.graph.erase_node(node)  # which would keep alive what a constant is made of
    constant = _constants(graph)
    roots = [node for node in constant if node.op != "get_attr" and any(user not in constant for user in node.users)]
    roots = [node for node in roots if isinstance(node.meta.get("val"), torch.Tensor)]
    if not roots:
        return 0
    values = _Computing(graph, constant).values()
    count = 0
    for node in roots:
        value = values[node]
        if value.numel() > max(LARGEST, *(_elements(source) for source in _sources(node)), 0):
            logger.debug("%s stays an operator: its %d elements would be stored", node.name, value.numel())
            continue
        with graph.graph.inserting_before(node):
            stored = add_parameter(graph, f"{node.name}_value", value)
        stored.meta = {**stored.meta, "nn_module_stack": node.meta.get("nn_module_stack", {})}
        node.replace_all_uses_with(stored)
        count += 1
    graph.graph.eliminate_dead_code()
    return count


def _constants(graph: GraphModule) -> set[Node]:
    """Parameters, buffers, and the operators that read nothing else; in a functional graph, none is written to."""
    found: set[Node] = set()
    for node in graph.graph.nodes:
        if node.op == "get_attr" or (
            node.op == "call_function" and not _is_random(node) and all(each in found for each in node.all_input_nodes)
        ):
            found.add(node)
    return found


def _is_random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _sources(node: Node) -> list[Node]:
    """The parameters that a constant is made of."""
    found, pending = [], [node]
    while pending:
        current = pending.pop()
        if current.op == "get_attr":
            found.append(current)
        pending += current.all_input_nodes
    return found


def _elements(node: Node) -> int:
    value = node.meta.get("val")
    return int(value.numel()) if isinstance(value, torch.Tensor) else 0


class _Computing(Interpreter):
    """Computes the constants of a graph, and nothing else of it."""

    def __init__(self, graph: GraphModule, constant: set[Node]) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self._constant = [node for node in graph.graph.nodes if node in constant]

    def values(self) -> dict[Node, Tensor]:
        with torch.no_grad():
            for node in self._constant:
                self.env[node] = self.run_node(node)
        return {node: value.detach() for node, value in self.env.items() if isinstance(value, Tensor)}
