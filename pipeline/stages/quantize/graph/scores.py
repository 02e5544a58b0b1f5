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
    for softmax in graph.graph.nodes:
        if softmax.target == aten.softmax.int:
            found |= dict.fromkeys(_masked(softmax.all_input_nodes[0], spans), MASKED_SCORE)
    return found


def _masked(value: Node, spans: Spans) -> list[Node]:
    """A value and what makes it, as far as it is masked; nothing where it is not."""
    if value.op != "call_function" or not is_float_tensor(value):
        return []
    sources = [found for each in activations(value) if (found := _masked(each, spans))]
    moves = kind_of(value) == "moves" and len(sources) == 1
    if not moves and value.target not in MASKS and spans.get(key_of(value), 0.0) < FAR:
        return []
    return [value, *(node for found in sources for node in found)]
