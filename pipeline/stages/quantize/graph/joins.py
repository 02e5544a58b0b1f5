"""Joined tensors: when a concatenation's one grid is too coarse for what it joins.

A concatenation of integers has one grid, as wide as the widest tensor. A narrow tensor that matters keeps its precision
where the operator that needs it reads another value: its own grid, or floats. Whether it matters is measured: a gate, a
softmax, a norm or the weights of the next layer may make it as important as the wide ones. See `ranges.precision`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch.fx import GraphModule, Node

from pipeline.stages.quantize.graph.capabilities import SUMS, kind_of, rule_of
from pipeline.stages.quantize.graph.nodes import activations, is_float_tensor, key_of

CRAMPED = 2.0
"""How much wider a joined range is than a tensor's own where its other readers keep the tensor's own grid."""

INCOMPATIBLE = 16.0
"""How much wider one of several summed tensors is than another where they may stay in float: four of eight bits would
be lost."""

APART = 4.0
"""The same for a concatenation, such as a detector's boxes beside its scores: two bits. In floats, it only copies."""

LEVELS = 255

Spans = Mapping[str, float]
"""How wide the values are that calibration saw, by the nodes' keys."""

Reasons = Mapping[str, str]
"""Why operators stay in float, by the nodes' keys."""


def is_cramped(value: Node, joined: list[Node], spans: Spans) -> bool:
    """Whether a tensor that others read too would be much coarser on the grid of what it is joined with."""
    own, widest = _span_of(value, spans), max(_span_of(each, spans) for each in joined)
    return 0 < own * CRAMPED <= widest and _has_other_readers(value)


def why_incompatible(graph: GraphModule, spans: Spans) -> dict[Node, str]:
    """Joins and sums that stay in float since no kernel reads their result, whose grid would lose a narrow operand."""
    return {
        node: f"joins tensors whose ranges differ {ratio:.0f}-fold: one grid would lose the smaller"
        for node, ratio in unlike(graph, spans, APART)
        if (ratio > INCOMPATIBLE or node.target not in SUMS) and not _is_read_by_kernels(node)
    }


def unlike(graph: GraphModule, spans: Spans, least: float) -> Iterator[tuple[Node, float]]:
    """Joins and sums of tensors of which one is at least so much wider than another, and how much."""
    for node in graph.graph.nodes:
        if (kind_of(node) == "moves" or node.target in SUMS) and is_float_tensor(node):
            wide = [span for value in activations(node) if (span := _span_of(value, spans)) > 0]
            if len(wide) > 1 and max(wide) > least * min(wide):
                yield node, max(wide) / min(wide)


def _is_read_by_kernels(node: Node) -> bool:
    """Whether an operator that computes reads a tensor, past operators that only move it: it rounds it in any case."""
    return any(
        kind_of(user) not in (None, "moves") or (kind_of(user) == "moves" and _is_read_by_kernels(user))
        for user in node.users
    )


def _has_other_readers(value: Node) -> bool:
    """Whether more than one operator reads a tensor, or any that it was moved from, which shares its grid."""
    return len(value.users) > 1 or ((origin := _moved_from(value)) is not None and _has_other_readers(origin))


def _moved_from(value: Node) -> Node | None:
    """The one tensor that an operator only moves, such as the input of a slice or a transposition."""
    return activations(value)[0] if kind_of(value) == "moves" and len(activations(value)) == 1 else None


def _span_of(value: Node, spans: Spans) -> float:
    """How wide a tensor is, or what it was moved from; 0 where calibration did not look."""
    while key_of(value) not in spans and (origin := _moved_from(value)) is not None:
        value = origin
    prescribed = rule_of(value).scale * LEVELS if kind_of(value) == "fixed" else 0.0
    return spans.get(key_of(value), prescribed)
