"""Masks that a model writes itself: a score far below all others becomes one number that every target can hold.

``scores + mask`` with minus infinity, ``finfo.min`` or -10,000 in the mask, and ``masked_fill`` with such a number, put
scores in front of softmax that no integer grid can hold beside the real ones: clamped into the grid, a masked token
would be seen. The sum becomes ``where(mask > MASKED, scores + mask, MASKED)``, and softmax reads that in float.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from pipeline.stages.quantize.graph.capabilities import CARRIES, MASKS, aten
from pipeline.stages.quantize.graph.forms.attention import MASKED

FAR = -1e3
"""An offset from which a softmax of float32 scores gives zero, whatever the scores."""


def masks_to_choices(graph: GraphModule, samples: tuple[Tensor, ...]) -> int:
    """Rewrite every mask in front of a softmax, in place; how many there were."""
    scores = {
        node: found for node in graph.graph.nodes if node.target == aten.softmax.int and (found := _masking(node))
    }
    if not scores:
        return 0
    lows = _lows(graph, {source for each in scores.values() for source in each.all_input_nodes}, samples)
    return sum(_to_choice(graph, node, lows) for node in set(scores.values()))


def _masking(softmax: Node) -> Node | None:
    """The operator that may mask what a softmax reads, past operators that only move values."""
    source = softmax.args[0]
    while isinstance(source, Node) and source.target in CARRIES and len(source.users) == 1:
        source = source.args[0]
    if isinstance(source, Node) and source.target in (aten.add.Tensor, *MASKS) and len(source.users) == 1:
        return source
    return None


def _lows(graph: GraphModule, nodes: set[Node], samples: tuple[Tensor, ...]) -> dict[Node, float]:
    """The smallest value of some nodes on the samples."""
    found: dict[Node, float] = {}

    class Measuring(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if n in nodes and isinstance(value, Tensor) and value.is_floating_point():
                found[n] = float(value.min())
            return value

    with torch.no_grad():
        Measuring(graph).run(*samples)
    return found


def _to_choice(graph: GraphModule, node: Node, lows: dict[Node, float]) -> bool:
    arguments: Any = node.args
    if node.target in (aten.masked_fill.Scalar, aten.where.ScalarOther):
        far = isinstance(arguments[2], int | float) and arguments[2] <= FAR and arguments[2] != MASKED
        if far:
            node.args = (*arguments[:2], MASKED)
        return far
    if node.target != aten.add.Tensor or node.kwargs:
        return False
    masks = [source for source in node.all_input_nodes if lows.get(source, 0.0) <= FAR]
    if len(masks) != 1 or len(node.all_input_nodes) != 2:
        return False
    (mask,) = masks
    (scores,) = (source for source in node.all_input_nodes if source is not mask)
    readers, meta = list(node.users), node.meta
    with graph.graph.inserting_after(node):
        fill = graph.graph.call_function(aten.where.ScalarOther, (mask, node, MASKED))
    with graph.graph.inserting_before(node):
        visible = graph.graph.call_function(aten.gt.Scalar, (mask, FAR))
        visible.meta = {**meta, "val": aten.gt.Scalar(mask.meta["val"], FAR)}
        offsets = graph.graph.call_function(aten.where.ScalarOther, (visible, mask, 0.0))
        offsets.meta = {**meta, "val": mask.meta["val"]}
    fill.args = (visible, node, MASKED)
    fill.meta = dict(meta)
    node.args = (scores, offsets)
    for reader in readers:
        reader.replace_input_with(node, fill)
    return True
