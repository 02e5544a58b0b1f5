"""Masked scores: what softmax reads in float, because no integer grid holds a mask beside the scores.

`forms.masks` writes masks as choices where it recognises them. Whatever else puts numbers far below all scores in front
of a softmax is found by the ranges that calibration saw.
"""

from __future__ import annotations

import math

from torch.fx import GraphModule, Node

from pipeline.stages.quantize.graph.capabilities import MASKS, aten, kind_of
from pipeline.stages.quantize.graph.joins import Spans
from pipeline.stages.quantize.graph.nodes import activations, is_float_tensor, key_of

FAR = 1e3
"""How wide the scores of a softmax are where some of them are masked."""

MASKED_SCORE = "a masked score is too small for any integer grid: softmax reads it in float"
INFINITE = "it is minus infinity on some calibration samples, as masks are: no grid can hold that"


def masked_scores(graph: GraphModule, spans: Spans) -> dict[Node, str]:
    """Operators that make masked scores or move them, and why they stay in float."""
    found = {
        node: INFINITE
        for node in graph.graph.nodes
        if node.op == "call_function" and math.isinf(spans.get(key_of(node), 0.0))
    }
    pending = [node.all_input_nodes[0] for node in graph.graph.nodes if node.target == aten.softmax.int]
    while pending:
        node = pending.pop()
        if node not in found and node.op == "call_function" and is_float_tensor(node) and _is_masked(node, spans):
            found[node] = MASKED_SCORE
            pending += activations(node)
    return found


def _is_masked(value: Node, spans: Spans) -> bool:
    """Whether a tensor, or what it is moved from, is masked, or spans more than scores do."""
    while kind_of(value) == "moves" and len(activations(value)) == 1 and spans.get(key_of(value), 0.0) < FAR:
        (value,) = activations(value)
    return value.target in MASKS or spans.get(key_of(value), 0.0) >= FAR
