"""The scheme: which operators of a canonical graph run as integers, and which values share quantization parameters.

Every float tensor that an integer operator produces or consumes gets one set of parameters, at the node that makes
it. Tensors linked by operators that only move data form a group that shares its set. An operator followed only by a
clamp has no parameters of its own: its range is the clamp's.
"""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch.fx import GraphModule, Node

from pipeline.core import SkippedLayer
from pipeline.stages.quantize.graph.capabilities import CREATES, RULE_OF, SPLITS, aten, kind_of, rule_of
from pipeline.stages.quantize.graph.divisors import why_precise
from pipeline.stages.quantize.graph.forms.padding import is_read_by_max_pools
from pipeline.stages.quantize.graph.joins import Reasons, Spans, is_cramped, why_incompatible
from pipeline.stages.quantize.graph.nodes import activations, is_float_tensor, key_of, layer_name, pad_value
from pipeline.stages.quantize.graph.scores import masked_scores

logger = logging.getLogger(__name__)

NO_SPANS: Spans = MappingProxyType({})
NO_REASONS: Reasons = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Scheme:
    """The scheme of one canonical graph, by the keys of its nodes; it is valid for every copy of the graph.

    Attributes:
        quantized: Nodes that run as integer operators, in the graph's order.
        weighted: Those of them that are convolutions and linear layers.
        roots: The node whose parameters each quantized value uses (often its own).
        requantized: Pairs of a value and a consumer that reads it with its own output's parameters.
        skipped: What stays in float, and why.
    """

    quantized: tuple[str, ...]
    weighted: tuple[str, ...]
    roots: Mapping[str, str]
    requantized: tuple[tuple[str, str], ...]
    skipped: tuple[SkippedLayer, ...]


def scheme_of(
    graph: GraphModule, skip: tuple[str, ...] = (), spans: Spans = NO_SPANS, precise: Reasons = NO_REASONS
) -> Scheme:
    """Decide the scheme of a canonical graph.

    Args:
        skip: Names of modules to leave in float, with everything inside them.
        spans: How wide the values are that calibration saw, by the nodes' keys: operators that join several tensors
            are treated by them, see `graph.joins`.
        precise: Operators that were found to need floats, and why, by the nodes' keys.
    """
    masked = masked_scores(graph, spans)
    measured = {node: precise[key_of(node)] for node in graph.graph.nodes if key_of(node) in precise}
    candidates, skipped = _candidates(graph, skip, why_incompatible(graph, spans) | measured | masked)
    order = {node: position for position, node in enumerate(graph.graph.nodes)}
    inner = _fused_producers(candidates)
    groups, anchored, requantized = _Groups(order), set[Node](), []
    for node in candidates:
        reads_masked = node.target == aten.softmax.int
        values = [each for each in activations(node) if each not in inner and not (reads_masked and each in masked)]
        if kind_of(node) != "moves":
            anchored.update(values if node in inner else [*values, node])
            continue
        groups.add(node)
        for value in values:
            if len(values) > 1 and (has_fixed_parameters(groups.root(value)) or is_cramped(value, values, spans)):
                requantized.append((value, node))
            else:
                groups.join(value, node)
    anchored.update(value for pair in requantized for value in pair)
    used = {groups.root(value) for value in anchored}
    members = sorted(anchored | groups.members, key=order.__getitem__)
    roots = {value: root for value in members if (root := groups.root(value)) in used}
    quantized = [node for node in candidates if node in roots or node in inner]
    logger.debug("%d of %d operators run as integers; in float: %s", len(quantized), len(order), skipped)
    return Scheme(
        quantized=tuple(key_of(node) for node in quantized),
        weighted=tuple(key_of(node) for node in quantized if kind_of(node) == "weighted"),
        roots={key_of(value): key_of(root) for value, root in roots.items()},
        requantized=tuple((key_of(value), key_of(consumer)) for value, consumer in dict.fromkeys(requantized)),
        skipped=skipped,
    )


def has_fixed_parameters(value: Node) -> bool:
    """Whether an integer kernel prescribes the parameters of an operator's result."""
    return kind_of(value) == "fixed"


def _candidates(
    graph: GraphModule, skip: tuple[str, ...], seen: dict[Node, str]
) -> tuple[list[Node], tuple[SkippedLayer, ...]]:
    """The operators that can run as integers, and why the others cannot.

    Args:
        seen: Operators that stay in float for what calibration saw, and why.
    """
    candidates, left_in_float, skipped = [], set[Node](), []
    divisors, bound = why_precise(graph), _bound_to_clamps(graph, skip, seen)
    for node in graph.graph.nodes:
        if node.op != "call_function" or not is_float_tensor(node) or _creates(node):
            continue
        reason = (
            _left_by_recipe(node, skip) or seen.get(node) or bound.get(node) or _why_float(node) or divisors.get(node)
        )
        if reason is not None:
            left_in_float.add(node)
            skipped.append(SkippedLayer(layer=layer_name(node), reason=reason))
        elif kind_of(node) == "clamp" and node.all_input_nodes[0] in left_in_float:
            left_in_float.add(node)  # a clamp stays with the operator before it, so that no range is taken between
        else:
            candidates.append(node)
    return candidates, tuple(dict.fromkeys(skipped))


def _bound_to_clamps(graph: GraphModule, skip: tuple[str, ...], seen: dict[Node, str]) -> dict[Node, str]:
    """Operators whose only reader is a clamp that stays in float: no range was taken between the two."""
    clamps = [node for node in graph.graph.nodes if kind_of(node) == "clamp"]
    left = [node for node in clamps if node in seen or _left_by_recipe(node, skip)]
    producers = [node.all_input_nodes[0] for node in left]
    return {node: "the clamp behind it stays in float" for node in producers if len(node.users) == 1}


def _creates(node: Node) -> bool:
    """Whether an operator makes a tensor without reading floats: what reads it decides how it is held."""
    return node.target in CREATES or not any(_has_floats(source) for source in node.all_input_nodes)


def _has_floats(node: Node) -> bool:
    value = node.meta.get("val")
    parts = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(part, torch.Tensor) and part.is_floating_point() for part in parts)


def _left_by_recipe(node: Node, skip: tuple[str, ...]) -> str | None:
    layer = layer_name(node)
    inside = any(layer == name or layer.startswith(f"{name}.") for name in skip)
    return "left in float by the recipe" if inside else None


def _why_float(node: Node) -> str | None:
    """Why an operator cannot run as integers; None where it can."""
    if node.target not in RULE_OF or (node.target == operator.getitem and node.all_input_nodes[0].target not in SPLITS):
        return f"no integer kernel for {node.target}"
    if (dtype := node.meta["val"].dtype) != torch.float32:
        return f"computes in {str(dtype).removeprefix('torch.')}: only float32 becomes integers"
    if not math.isfinite(pad_value(node) or 0) and not is_read_by_max_pools(node):
        return "pads with a number that no grid can hold"
    if rule_of(node).kind == "weighted" and node.all_input_nodes[1].op != "get_attr":
        return "its weight is computed"
    return None


def _fused_producers(candidates: list[Node]) -> set[Node]:
    """The operators that the clamp after them fuses into, where nothing else reads their result."""
    able, found = set(candidates), set()
    for node in candidates:
        if kind_of(node) == "clamp":
            producer = node.all_input_nodes[0]
            if producer in able and len(producer.users) == 1 and kind_of(producer) in ("weighted", "computes"):
                found.add(producer)
    return found


class _Groups:
    """Disjoint sets of values; the root of a set is the value that the graph makes first."""

    def __init__(self, order: dict[Node, int]) -> None:
        self._order = order
        self._parent: dict[Node, Node] = {}

    @property
    def members(self) -> set[Node]:
        return set(self._parent)

    def add(self, value: Node) -> None:
        self._parent.setdefault(value, value)

    def root(self, value: Node) -> Node:
        while self._parent.get(value, value) is not value:
            value = self._parent[value]
        return value

    def join(self, first: Node, second: Node) -> None:
        self.add(first)
        self.add(second)
        earlier, later = sorted((self.root(first), self.root(second)), key=self._order.__getitem__)
        self._parent[later] = earlier
