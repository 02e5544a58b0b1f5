"""Masks that a model writes itself: a score far below all others becomes one number that every target can hold.

``scores + mask`` and ``scores - mask`` with minus infinity, ``finfo.min``, -10,000 or -100 in the mask, and
``masked_fill`` with such a number, put scores in front of softmax that no integer grid can hold beside the real ones:
clamped into the grid, a masked token would be seen. The sum becomes
``where(mask > far, scores + where(mask > far, mask, 0), MASKED)``, and softmax reads that in float.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from pipeline.stages.quantize.graph.capabilities import CARRIES, MASKS, PRODUCTS, SUMS, aten
from pipeline.stages.quantize.graph.forms.attention import MASKED
from pipeline.stages.quantize.graph.nodes import argument, is_float_tensor

FAR = -1e3
"""The largest floor that only masked scores reach, and the largest number that is filled in for them."""

NEAR = -64.0
"""The largest offset that counts as a mask; it must also lie twice as far below as scores lie apart."""

ABSORBING = -1e7
"""An offset in which float32 loses the scores: where it masks a whole row, softmax gives equal shares."""


@dataclass(frozen=True)
class _Seen:
    """The smallest and the largest value of a tensor on the samples, and the tensor."""

    low: float
    high: float
    value: Tensor


Term = tuple[int, Node]
"""A sign and what is added with it."""


def masks_to_choices(graph: GraphModule, samples: tuple[Tensor, ...]) -> int:
    """Rewrite every mask in front of a softmax, in place; how many there were."""
    softmaxes = [node for node in graph.graph.nodes if node.target == aten.softmax.int]
    if not softmaxes:
        return 0
    seen = _values(graph, {each for node in softmaxes for each in _sources(node)}, samples)
    return sum(_drop_floors(graph, node) + _to_choice(graph, node, seen) for node in softmaxes)


def scores_reach_mask(graph: GraphModule, samples: tuple[Tensor, ...]) -> bool:
    """Whether scores of taken-apart attention come near the number that it fills in for masked ones."""
    softmaxes = [node for node in graph.graph.nodes if node.target == aten.softmax.int and _chosen(node)]
    seen = _values(graph, {each for node in softmaxes for each in _sources(node)}, samples) if softmaxes else {}
    return any(_out_of_reach(node, seen) < MASKED for node in softmaxes)


def _chosen(softmax: Node) -> bool:
    return any(each.target in MASKS for each in _sources(softmax))


def _sources(softmax: Node) -> Iterator[Node]:
    """The float tensors that may make up what a softmax reads: through sums and operators that only move values."""
    pending, found = list(softmax.all_input_nodes), set[Node]()
    while pending:
        node = pending.pop()
        if node in found or not is_float_tensor(node):
            continue
        found.add(node)
        yield node
        if node.target in (*CARRIES, *SUMS, *MASKS) or _is_floor(node):
            pending += node.all_input_nodes


def _values(graph: GraphModule, nodes: set[Node], samples: tuple[Tensor, ...]) -> dict[Node, _Seen]:
    """Some nodes' values on the samples."""
    found: dict[Node, _Seen] = {}

    class Measuring(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if n in nodes and isinstance(value, Tensor) and value.numel():
                found[n] = _Seen(float(value.min()), float(value.max()), value)
            return value

    with torch.no_grad():
        Measuring(graph).run(*samples)
    return found


def _is_floor(node: Node) -> bool:
    """Whether an operator only raises what lies far below all scores: ``clamp(x, min=-1e9)``, as OPT writes it."""
    if node.target in (aten.clamp.default, aten.clamp_min.default):
        return float(argument(node, 1, 0.0)) <= FAR and argument(node, 2) is None and not node.kwargs
    return False


def _drop_floors(graph: GraphModule, softmax: Node) -> int:
    """Let what reads the floors in front of a softmax read what they read; softmax gives zero for either."""
    floors = [node for node in _chain(softmax) if _is_floor(node)]
    for node in floors:
        node.replace_all_uses_with(node.all_input_nodes[0])
        graph.graph.erase_node(node)
    return len(floors)


def _chain(softmax: Node) -> Iterator[Node]:
    """What a softmax reads, and what that is moved or raised from, while nothing else reads it."""
    node: Any = softmax.args[0]
    while isinstance(node, Node) and len(node.users) == 1:
        yield node
        if node.target not in CARRIES and not _is_floor(node):
            return
        node = node.args[0]


def _to_choice(graph: GraphModule, softmax: Node, seen: dict[Node, _Seen]) -> int:
    """Rewrite the masks of one softmax, also those of sums inside sums; how many."""
    *_, source = (None, *_chain(softmax))
    if source is None:
        return 0
    if source.target in (aten.masked_fill.Scalar, aten.where.ScalarOther):
        return _fill_less(source, softmax, seen)
    terms = list(_terms(source, 1, seen)) if source.target in SUMS else []
    span = sum(seen[node].high - seen[node].low for _, node in terms if _is_scores(node))
    far = min(NEAR, NEAR / 2 - 2 * span)
    masks = [(sign, node) for sign, node in terms if _low(sign, seen[node]) <= far and not _is_scores(node)]
    others = [term for term in terms if term not in masks]
    if not masks or not others or _out_of_reach(softmax, seen) < MASKED:
        return 0
    axis = int(argument(softmax, 1, -1))
    _choose(graph, source, masks, others, far, _lifted_axis(masks, seen, axis - source.meta["val"].ndim * (axis >= 0)))
    return 1


def _fill_less(node: Node, softmax: Node, seen: dict[Node, _Seen]) -> int:
    """Replace a number far below all scores by `MASKED`, where that is far below them, too."""
    arguments: Any = node.args
    if not isinstance(arguments[2], int | float) or arguments[2] > FAR or arguments[2] == MASKED:
        return 0
    if max(arguments[2], MASKED) > _out_of_reach(softmax, seen):
        return 0
    node.args = (*arguments[:2], MASKED)
    return 1


def _out_of_reach(softmax: Node, seen: dict[Node, _Seen]) -> float:
    """A number so far below the scores of a softmax that it masks, also where they lie twice as far apart."""
    moved = (*CARRIES, *SUMS, *MASKS)
    scores = [
        seen[each] for each in _sources(softmax) if each in seen and each.target not in moved and _is_scores(each)
    ]
    low, high = sum(each.low for each in scores), sum(each.high for each in scores)
    return low - (high - low) + NEAR


def _terms(node: Node, sign: int, seen: dict[Node, _Seen]) -> Iterator[Term]:
    """What a sum adds up, through those of its parts that are sums with something far off themselves."""
    for operand, own in zip(node.args, (sign, sign if node.target == aten.add.Tensor else -sign), strict=False):
        if not isinstance(operand, Node) or node.kwargs or operand not in seen:
            return  # a sum with a number, or of weighted parts
        inner = operand.target in SUMS and len(operand.users) == 1 and _low(own, seen[operand]) <= NEAR
        parts = list(_terms(operand, own, seen)) if inner else []
        yield from parts if len(parts) > 1 else [(own, operand)]


def _low(sign: int, seen: _Seen) -> float:
    return seen.low if sign > 0 else -seen.high


def _is_scores(node: Node) -> bool:
    """Whether a tensor is computed by matrix products, as scores are and masks are not."""
    return any(each.target in PRODUCTS for each in _ancestors(node))


def _lifted_axis(masks: list[Term], seen: dict[Node, _Seen], axis: int) -> int | None:
    """The axis along which masks are lifted until their largest number is zero; None where they need not be.

    Softmax does not see what is added to all of a row, so a row that is masked by -10,000 as a whole keeps its scores.
    A mask that is the same for every sample is looked at; any other may mask a row that no sample here shows.
    """
    values = [sign * seen[node].value for sign, node in masks]
    total = sum(values[1:], values[0])
    if total.ndim < -axis or float(total.min()) <= ABSORBING:
        return None
    varies = any(each.op == "placeholder" for _, node in masks for each in _ancestors(node))
    return axis if varies or bool((total.amax(axis) <= NEAR).any()) else None


def _ancestors(node: Node) -> set[Node]:
    """A node and all that it is computed from."""
    pending, found = [node], set[Node]()
    while pending:
        each = pending.pop()
        if each not in found:
            found.add(each)
            pending += each.all_input_nodes
    return found


def _choose(
    graph: GraphModule, node: Node, masks: list[Term], others: list[Term], far: float, lifted: int | None
) -> None:
    """Write ``where(mask > far, others + where(mask > far, mask, 0), MASKED)`` in the place of a sum."""

    def call(operator: Any, *args: Any) -> Node:
        made = graph.graph.call_function(operator, args)
        values = [each.meta["val"] if isinstance(each, Node) else each for each in args]
        made.meta = {**node.meta, "val": operator(*values)}
        return made

    def added(terms: list[Term]) -> Node:
        (sign, total), *rest = terms
        total = total if sign > 0 else call(aten.neg.default, total)
        for sign, each in rest:
            total = call(aten.add.Tensor if sign > 0 else aten.sub.Tensor, total, each)
        return total

    with graph.graph.inserting_before(node):
        mask = added(masks)
        if lifted is not None:
            mask = call(aten.sub.Tensor, mask, call(aten.amax.default, mask, [lifted], True))
        visible = call(aten.gt.Scalar, mask, far)
        offsets = call(aten.where.ScalarOther, visible, mask, 0.0)
        total = call(aten.add.Tensor, added(others), offsets)
        fill = call(aten.where.ScalarOther, visible, total, MASKED)
    node.replace_all_uses_with(fill)
