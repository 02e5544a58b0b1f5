"""Precision: operators that stay in float because a grid, tried on samples, would spoil an output.

- Joins: a concatenation has one grid, as wide as the widest tensor; a narrow one that matters is lost.
- Constants: a batch norm that folds into no layer multiplies a channel that was constant in training by some hundred,
  and others by one. A convolution's weight has one scale per channel; what a product or a sum reads has one for all.
- Prescribed grids: softmax and sigmoid reach 1, and their grid ends at 255/256; tanh's ends at 127/128. As a rule the
  difference drowns in rounding. It matters where a gate is subtracted from 1, or a norm of little variance reads it.

All of a kind are tried at once first, so that a network without such losses costs three runs.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from pipeline.stages.quantize.graph.capabilities import PRODUCTS, SUMS, Rule, aten, kind_of, rule_of
from pipeline.stages.quantize.graph.joins import Reasons, Spans, unlike
from pipeline.stages.quantize.graph.nodes import is_float_tensor, key_of
from pipeline.stages.quantize.ranges.losses import Change, Losses, on_own_grid, readers
from pipeline.stages.quantize.scales.numbers import QMAX, QMIN

TRIED = 4.0
"""How much wider one of several joined tensors is than another where it is tried whether it matters: two bits less."""

TERMS = (*SUMS, aten.mul.Tensor, aten.prelu.default)
"""Operators that read a constant of one number per channel. The gain of a norm is left to equalisation."""

UNLIKE = "the numbers of a constant are too unlike for one grid, and an output needs the small ones"
CLAMPED = "the grid that its kernel prescribes would clamp its largest values, and an output needs them"
READS_CLAMPED = "reads values that the grid of the kernel before it would clamp, and an output needs them"


def why_precise(losses: Losses, spans: Spans) -> Reasons:
    """Operators that need floats, and why, by the nodes' keys."""
    return {**why_clamped(losses), **why_unlike(losses), **why_lost(losses, spans)}


def why_lost(losses: Losses, spans: Spans) -> Reasons:
    """Joins, and what reads them, that stay in float because one grid would lose a narrow tensor that matters.

    A join whose result, rounded alone, spoils an output stays in float, and so do its readers. What these give may hold
    the narrow tensor beside the wide one still, and is tried in turn; so is what follows a harmless join, since a mean
    of it has a grid of its own, whose errors nothing averages.
    """
    joins = [(node, ratio) for node, ratio in unlike(losses.graph, spans, TRIED) if node.target not in SUMS]
    held = {join: [join, *_side_by_side(join)] for join, _ in joins}
    found: dict[str, str] = {}
    if not joins or not losses.spoiled_by({value: on_own_grid for values in held.values() for value in values}):
        return found
    for join, ratio in joins:
        joined = f"joins tensors whose ranges differ {ratio:.0f}-fold: see what reads it"
        needs = f"reads tensors joined from ranges {ratio:.0f}-fold apart, and needs all"
        for value in held[join]:
            if dependents := losses.dependents(value):
                found.setdefault(key_of(value), joined if value is join else needs)
                found = dict.fromkeys(map(key_of, dependents), needs) | found
    return found


def why_unlike(losses: Losses) -> Reasons:
    """Operators that stay in float because a constant, rounded alone, would spoil an output."""
    constants = _constants(losses.graph)
    if not constants or not losses.spoiled_by(dict.fromkeys(constants, on_own_grid)):
        return {}
    return {key_of(reader): UNLIKE for constant in constants for reader in losses.dependents(constant)}


def why_clamped(losses: Losses) -> Reasons:
    """Operators that stay in float because their prescribed grid would clamp values that matter, and their readers."""
    fixed = [node for node in losses.graph.graph.nodes if kind_of(node) == "fixed" and is_float_tensor(node)]
    clamps = {node: _clamp(rule_of(node)) for node in fixed}
    found: dict[str, str] = {}
    if clamps and losses.spoiled_by(clamps):
        for node, clamp in clamps.items():
            if dependents := losses.dependents(node, clamp):
                found |= dict.fromkeys(map(key_of, dependents), READS_CLAMPED)
                found[key_of(node)] = CLAMPED
    return found


def _side_by_side(join: Node) -> list[Node]:
    """What is computed from a join without mixing the tensors that it holds side by side."""
    found: dict[Node, None] = {}
    pending = [join]
    while pending:
        able = [each for each in readers(pending.pop()) if kind_of(each) in ("moves", "clamp", "computes")]
        following = [each for each in able if each not in found and each.target not in PRODUCTS]
        found |= dict.fromkeys(following)
        pending += following
    return list(found)


def _constants(graph: GraphModule) -> list[Node]:
    """Constants that sums and products read."""
    constants = [node for node in graph.graph.nodes if node.op == "get_attr" and is_float_tensor(node)]
    return [node for node in constants if any(user.target in TERMS for user in node.users)]


def _clamp(rule: Rule) -> Change:
    low, high = ((end - rule.zero_point) * rule.scale for end in (QMIN, QMAX))
    return lambda value: value.clamp(low, high)
