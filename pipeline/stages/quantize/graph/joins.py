"""Joined tensors: when a concatenation's one grid is too coarse for what it joins.

A concatenation of integers has one grid, as wide as the widest tensor. A narrow tensor that matters keeps its precision
where the operator that needs it reads another value: its own grid, or floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pipeline.stages.quantize.graph.capabilities import SUMS, WEIGHTED, aten, kind_of, rule_of
from pipeline.stages.quantize.graph.nodes import (
    activations,
    argument,
    channel_axis,
    group_count,
    is_float_tensor,
    key_of,
    tensor_of,
)

CRAMPED = 2.0
"""How much wider a joined range is than a tensor's own where its other readers keep the tensor's own grid."""

INCOMPATIBLE = 16.0
"""How much wider one of several joined tensors is than another where they stay in float: four of eight bits would be
lost."""

SATURATES = (aten.sigmoid.default, aten.tanh.default, aten.hardtanh.default, aten.relu6.default, aten.clamp.default)
"""Functions whose results lie between two limits."""

Spans = Mapping[str, float]
"""How wide the values are that calibration saw, by the nodes' keys."""


def is_cramped(value: Node, joined: list[Node], spans: Spans) -> bool:
    """Whether a tensor that others read too would be much coarser on the grid of what it is joined with."""
    own, widest = _span_of(value, spans), max(_span_of(each, spans) for each in joined)
    return len(value.users) > 1 and 0 < own * CRAMPED <= widest


def why_incompatible(graph: GraphModule, spans: Spans) -> dict[Node, str]:
    """Operators that stay in float because a grid would lose the narrow ones of some joined tensors.

    These are joins and sums whose result no kernel reads, and concatenations with a reader to which the narrow tensors
    matter as much as the wide ones; that reader, too.
    """
    found: dict[Node, str] = {}
    for node in graph.graph.nodes:
        if not (kind_of(node) == "moves" or node.target in SUMS) or not is_float_tensor(node):
            continue
        wide = [span for value in activations(node) if (span := _span_of(value, spans)) > 0]
        if len(wide) < 2 or max(wide) <= INCOMPATIBLE * min(wide):
            continue
        readers = [user for user in node.users if _restores(graph, node, user, spans)]
        if readers or not _is_read_by_kernels(node):
            ratio = f"{max(wide) / min(wide):.0f}-fold"
            found[node] = f"joins tensors whose ranges differ {ratio}: one grid would lose the smaller"
            found |= dict.fromkeys(readers, f"reads joined tensors whose ranges differ {ratio}, and needs the smaller")
    return found


def _restores(graph: GraphModule, join: Node, reader: Node, spans: Spans) -> bool:
    """Whether an operator makes a narrow tensor as important as one that is far wider: by its constants, or by a limit
    that the wide one reaches.
    """
    if reader.target in SATURATES:
        return join.target == aten.cat.default
    gains = _gains(graph, join, reader) if join.target == aten.cat.default else None
    if gains is None:
        return False
    arguments: Any = join.args
    shares = torch.split(gains, [value.meta["val"].shape[_axis(join)] for value in arguments[0]])
    parts = [(_span_of(value, spans), float(share.max())) for value, share in zip(arguments[0], shares, strict=True)]
    return any(
        0 < span * INCOMPATIBLE < wide and gain > INCOMPATIBLE * other for span, gain in parts for wide, other in parts
    )


def _gains(graph: GraphModule, join: Node, reader: Node) -> Tensor | None:
    """The largest constant ``(C,)`` that multiplies each channel of a concatenation; None where there are none."""
    axis = _axis(join)
    if reader.target in WEIGHTED and reader.args[0] is join and reader.all_input_nodes[1].op == "get_attr":
        if channel_axis(reader.target) % join.meta["val"].ndim != axis:
            return None
        weight = tensor_of(graph, reader.all_input_nodes[1]).abs()
        if rule_of(reader).channel_axis == 1:  # a transposed convolution's weight begins with its input channels
            return weight.flatten(1).amax(1)
        groups, (outputs, inputs, *_) = group_count(reader), weight.shape
        return weight.reshape(groups, outputs // groups, inputs, -1).amax((1, 3)).flatten()
    if reader.target == aten.mul.Tensor:
        factors: list[Any] = [each for each in reader.args if isinstance(each, Node) and each.op == "get_attr"]
        for factor in factors:
            value = tensor_of(graph, factor).abs()
            shape = join.meta["val"].shape
            if value.ndim + axis >= len(shape) and value.shape[axis - len(shape)] == shape[axis]:
                return value.movedim(axis - len(shape), 0).reshape(shape[axis], -1).amax(1)
    return None


def _axis(join: Node) -> int:
    return int(argument(join, 1, 0)) % int(join.meta["val"].ndim)


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
    return rule_of(value).scale * 255 if kind_of(value) == "fixed" else spans.get(key_of(value), 0.0)
