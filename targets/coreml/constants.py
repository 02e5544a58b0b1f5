"""What a program computes from constants alone is computed once, before the converter sees it.

The converter folds some of that, and gets some of it wrong: ``triu`` of minus infinity becomes a product with zeros,
which is not a number.
"""

from __future__ import annotations

import logging

import torch
import torch.ao.quantization.fx._decomposed  # registers quantized_decomposed operators
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, GraphModule, Interpreter, Node

logger = logging.getLogger(__name__)

LARGEST = 4_000_000
"""Elements of a computed constant: a larger one would be stored instead of the little that it is made of."""

DEQUANTIZE = (
    torch.ops.quantized_decomposed.dequantize_per_tensor.default,
    torch.ops.quantized_decomposed.dequantize_per_channel.default,
)
"""Stays: Core ML stores a weight as int8 only where the operand of its dequantize is a constant."""


def has_constants(program: ExportedProgram) -> bool:
    """Whether an operator reads neither an input nor what was made from one."""
    signature = program.graph_signature.input_specs
    stored = {spec.arg.name for spec in signature if spec.kind is not InputKind.USER_INPUT}
    return any(node.op == "call_function" for node in _constant(program.graph, stored))


def fold(graph: GraphModule) -> int:
    """Store what operators on constants alone give, in place; how many results that others read there were."""
    constant = _constant(graph.graph, set())
    values = _Computing(graph, constant).values()
    roots = [node for node in values if node.op != "get_attr" and any(user not in values for user in node.users)]
    for node in roots:
        name = f"{node.name}_value"
        graph.register_buffer(name, values[node])
        with graph.graph.inserting_before(node):
            stored = graph.graph.get_attr(name)
        stored.meta = dict(node.meta)
        node.replace_all_uses_with(stored)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return len(roots)


def _constant(graph: Graph, stored: set[str]) -> list[Node]:
    """Stored tensors, and the operators that read nothing else; nothing random."""
    found: dict[Node, None] = {}
    for node in graph.nodes:
        reads_constants = (
            node.op == "call_function"
            and node.target not in DEQUANTIZE
            and torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())
            and all(each in found for each in node.all_input_nodes)
        )
        if node.op == "get_attr" or node.name in stored or reads_constants:
            found[node] = None
    return list(found)


class _Computing(Interpreter):
    """Computes the constants of a graph, and nothing else of it."""

    def __init__(self, graph: GraphModule, constant: list[Node]) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self._constant = constant

    def values(self) -> dict[Node, Tensor]:
        """The tensors among them that are worth storing."""
        with torch.no_grad():
            for node in self._constant:
                self.env[node] = self.run_node(node)
        tensors = {node: value.detach() for node, value in self.env.items() if isinstance(value, Tensor)}
        stored = max((value.numel() for node, value in tensors.items() if node.op == "get_attr"), default=0)
        return {node: value for node, value in tensors.items() if value.numel() <= max(LARGEST, stored)}
