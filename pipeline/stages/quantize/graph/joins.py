"""Joined tensors: when a concatenation's one grid is too coarse for what it joins.

A concatenation of integers has one grid, as wide as the widest tensor. A narrow tensor that matters keeps its precision
where the operator that needs it reads another value: its own grid, or floats. Whether it matters is measured: a gate, a
softmax, a norm or the weights of the next layer may make it as important as the wide ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from pipeline.core.outputs import output_tuple
from pipeline.stages.quantize.graph.capabilities import SPLITS, SUMS, kind_of, rule_of
from pipeline.stages.quantize.graph.equality import least_sqnr_db
from pipeline.stages.quantize.graph.nodes import activations, is_float_tensor, key_of

CRAMPED = 2.0
"""How much wider a joined range is than a tensor's own where its other readers keep the tensor's own grid."""

INCOMPATIBLE = 16.0
"""How much wider one of several joined tensors is than another where they may stay in float: four of eight bits would
be lost."""

ENOUGH_DB = 30.0
"""SQNR of every output where a single tensor is rounded, from which on its grid is fine enough."""

LEVELS = 255

Spans = Mapping[str, float]
"""How wide the values are that calibration saw, by the nodes' keys."""

Reasons = Mapping[str, str]
"""Why operators stay in float, by the nodes' keys."""


def is_cramped(value: Node, joined: list[Node], spans: Spans) -> bool:
    """Whether a tensor that others read too would be much coarser on the grid of what it is joined with."""
    own, widest = _span_of(value, spans), max(_span_of(each, spans) for each in joined)
    return len(value.users) > 1 and 0 < own * CRAMPED <= widest


def why_incompatible(graph: GraphModule, spans: Spans) -> dict[Node, str]:
    """Joins and sums that stay in float since no kernel reads their result, whose grid would lose a narrow operand."""
    return {
        node: f"joins tensors whose ranges differ {ratio:.0f}-fold: one grid would lose the smaller"
        for node, ratio in _unlike(graph, spans)
        if not _is_read_by_kernels(node)
    }


def why_lost(graph: GraphModule, spans: Spans, inputs: tuple[Tensor, ...]) -> Reasons:
    """Joins, and what reads them, that stay in float because one grid would lose a narrow tensor that matters.

    A join whose result, rounded alone, spoils an output stays in float, and so do its readers. What these give may hold
    the narrow tensor beside the wide one still, and is tried in turn.

    Args:
        inputs: Samples ``(N, …)`` on which it is tried.
    """
    found: dict[str, str] = {}
    joins = [(node, ratio) for node, ratio in _unlike(graph, spans) if node.target not in SUMS]
    exact = _outputs(graph, inputs, None) if joins else ()
    for join, ratio in joins:
        pending = [join]
        while pending:
            value = pending.pop()
            if least_sqnr_db(exact, _outputs(graph, inputs, value)) >= ENOUGH_DB:
                continue
            found.setdefault(key_of(join), f"joins tensors whose ranges differ {ratio:.0f}-fold: see what reads it")
            for reader in _readers(value):
                if key_of(reader) not in found:
                    pending.append(reader)
                    found[key_of(reader)] = f"reads tensors joined from ranges {ratio:.0f}-fold apart, and needs all"
    return found


def _unlike(graph: GraphModule, spans: Spans) -> Iterator[tuple[Node, float]]:
    """Joins and sums of tensors of which one is far wider than another, and how much."""
    for node in graph.graph.nodes:
        if (kind_of(node) == "moves" or node.target in SUMS) and is_float_tensor(node):
            wide = [span for value in activations(node) if (span := _span_of(value, spans)) > 0]
            if len(wide) > 1 and max(wide) > INCOMPATIBLE * min(wide):
                yield node, max(wide) / min(wide)


def _readers(value: Node) -> Iterator[Node]:
    """Operators with a rule that read a value, past those that split it."""
    for user in value.users:
        if user.target in SPLITS:
            yield from (part for part in user.users if kind_of(part) is not None)
        elif kind_of(user) is not None and is_float_tensor(user):
            yield user


def _outputs(graph: GraphModule, inputs: tuple[Tensor, ...], rounded: Node | None) -> tuple[Tensor, ...]:
    """The real outputs of a graph in which one value is rounded to as many levels as integers have."""

    class Rounding(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if n is not rounded or value.numel() == 0:
                return value
            low, high = min(float(value.min()), 0.0), max(float(value.max()), 0.0)
            scale = max((high - low) / LEVELS, torch.finfo(value.dtype).tiny)
            return torch.fake_quantize_per_tensor_affine(value, scale, round(-low / scale), 0, LEVELS)

    with torch.no_grad():
        return tuple(each for each in output_tuple(Rounding(graph).run(*inputs)) if each.is_floating_point())


def _is_read_by_kernels(node: Node) -> bool:
    """Whether an operator that computes reads a tensor, past operators that only move it: it rounds it in any case."""
    return any(
        kind_of(user) not in (None, "moves") or (kind_of(user) == "moves" and _is_read_by_kernels(user))
        for user in node.users
    )


def _span_of(value: Node, spans: Spans) -> float:
    """How wide a tensor is, or what it was moved from; 0 where calibration did not look."""
    while key_of(value) not in spans and kind_of(value) == "moves" and len(activations(value)) == 1:
        (value,) = activations(value)
    prescribed = rule_of(value).scale * LEVELS if kind_of(value) == "fixed" else 0.0
    return spans.get(key_of(value), prescribed)
