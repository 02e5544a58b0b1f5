"""The annotator: writes the quantization scheme of `capabilities` onto a captured graph, for PT2E to carry out.

Every float tensor that an integer operator produces or consumes gets one set of parameters, at the node that makes
it. Tensors linked by operators that only move data form a group that shares its set. An operator followed only by a
clamp has no parameters of its own: its range is the clamp's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from pipeline.core import SkippedLayer
from pipeline.stages.quantize.graph.capabilities import CREATES, MASKS, RULE_OF, SPLITS, Rule
from pipeline.stages.quantize.ranges.observers import QMAX, QMIN, WEIGHT_QMAX
from pipeline.stages.quantize.scales.grids import ActivationGrid, FixedGrid, PerChannelWeightGrid
from pipeline.stages.quantize.scales.hardswish import HardswishInputGrid

GETITEM = "<built-in function getitem>"

ACTIVATION = QuantizationSpec(
    dtype=torch.int8,
    quant_min=QMIN,
    quant_max=QMAX,
    qscheme=torch.per_tensor_affine,
    observer_or_fake_quant_ctr=ActivationGrid,
)


@dataclass(frozen=True, slots=True)
class Scheme:
    """Which nodes run as integers, and which values share parameters.

    Attributes:
        quantized: Nodes that run as integer operators.
        roots: The node whose parameters each quantized value uses (often its own).
        requantized: Pairs of a value and a consumer that reads it with its own output's parameters.
        skipped: What stays in float, and why.
    """

    quantized: tuple[Node, ...]
    roots: dict[Node, Node]
    requantized: tuple[tuple[Node, Node], ...]
    skipped: tuple[SkippedLayer, ...]

    @property
    def weighted(self) -> tuple[Node, ...]:
        """The quantized convolutions and linear layers."""
        return tuple(node for node in self.quantized if rule_of(node).kind == "weighted")

    @property
    def float_kernels(self) -> dict[str, tuple[str, ...]]:
        """By target: the quantized layers whose kernel computes in float there, between integer values."""
        found: dict[str, dict[str, None]] = {}
        for node in self.quantized:
            for target in rule_of(node).float_on:
                found.setdefault(target, {})[f"{layer_name(node)}: {node.target}"] = None
        return {target: tuple(layers) for target, layers in found.items()}


class Int8Quantizer(Quantizer):  # type: ignore[misc]  # torchao has no type information
    """Static int8: affine per-tensor activations, symmetric narrow-range per-channel weights, float biases.

    Args:
        skip: Names of modules to leave in float, with everything inside them.
    """

    def __init__(self, skip: tuple[str, ...] = ()) -> None:
        self._skip = skip
        self.scheme = Scheme((), {}, (), ())

    def annotate(self, model: GraphModule) -> GraphModule:
        """Put a PT2E annotation on every node of the scheme."""
        self.scheme = plan(model, self._skip)
        for node in self.scheme.quantized:
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(_annotated=True)
            if rule_of(node).kind == "weighted":
                node.meta[Q_ANNOTATION_KEY].input_qspec_map[node.args[1]] = _weight_spec(rule_of(node))
        for value, root in self.scheme.roots.items():
            annotation = value.meta.setdefault(Q_ANNOTATION_KEY, QuantizationAnnotation(_annotated=True))
            annotation.output_qspec = _own_spec(value) if root is value else SharedQuantizationSpec(root)
        for value, consumer in self.scheme.requantized:
            shared = SharedQuantizationSpec(self.scheme.roots[consumer])
            consumer.meta[Q_ANNOTATION_KEY].input_qspec_map[value] = shared
        return model

    def prepare_obs_or_fq_callback(self, model: GraphModule, grids: dict[Any, Any]) -> None:
        """Span every weight, and tell activations' grids which values they hold."""
        for place, grid in grids.items():
            if isinstance(grid, PerChannelWeightGrid):
                grid.set_weight(tensor_of(model, place[0]))
            elif isinstance(grid, ActivationGrid) and isinstance(place, Node):
                grid.holds.append(place.name)

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: the scheme is complete by construction."""


def plan(model: GraphModule, skip: tuple[str, ...] = ()) -> Scheme:
    """Decide the scheme of a canonical graph."""
    candidates, left_in_float, skipped = [], set[Node](), []
    for node in model.graph.nodes:
        if node.op != "call_function" or not is_float_tensor(node) or str(node.target) in CREATES:
            continue
        reason = _why_float(node, skip)
        if reason is not None:
            left_in_float.add(node)
            skipped.append(SkippedLayer(layer=layer_name(node), reason=reason))
        elif rule_of(node).kind == "clamp" and node.all_input_nodes[0] in left_in_float:
            left_in_float.add(node)  # a clamp stays with the operator before it, so that no range is taken between
        else:
            candidates.append(node)

    order = {node: position for position, node in enumerate(model.graph.nodes)}
    inner = _fused_producers(candidates)
    groups, anchored, requantized = _Groups(order), set[Node](), []
    for node in candidates:
        values = [value for value in activations(node) if value not in inner and not _is_masked_score(value, node)]
        if rule_of(node).kind != "moves":
            anchored.update(values if node in inner else [*values, node])
            continue
        groups.add(node)
        for value in values:
            if len(values) > 1 and _has_fixed_parameters(groups.root(value)):
                requantized.append((value, node))
            else:
                groups.join(value, node)
    anchored.update(value for pair in requantized for value in pair)
    used = {groups.root(value) for value in anchored}
    members = sorted(anchored | groups.members, key=order.__getitem__)
    roots = {value: root for value in members if (root := groups.root(value)) in used}
    quantized = tuple(node for node in candidates if node in roots or node in inner)
    return Scheme(quantized, roots, tuple(requantized), tuple(dict.fromkeys(skipped)))


def activations(node: Node) -> list[Node]:
    """The float tensors that an operator takes in, without its weight and bias."""
    sources = node.all_input_nodes
    if rule_of(node).kind == "weighted":
        sources = sources[:1]
    elif str(node.target) == GETITEM:
        sources = sources[0].all_input_nodes[:1]  # past the operator that split the tensor
    return [value for value in sources if is_float_tensor(value)]


def rule_of(node: Node) -> Rule:
    """The table's row for an operator that has one."""
    return RULE_OF[str(node.target)]


def layer_name(node: Node) -> str:
    """The module that an operator comes from, such as ``layers.0.conv1``; its node name where it has none."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    name = str(stack[-1][0]) if stack else ""
    return name or node.name


def is_float_tensor(node: Node) -> bool:
    """Whether a node's value is one floating-point tensor."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def tensor_of(model: GraphModule, node: Node) -> Tensor:
    """The value of a ``get_attr`` node."""
    owner, _, name = str(node.target).rpartition(".")
    value = getattr(model.get_submodule(owner), name)
    assert isinstance(value, Tensor)
    return value.detach()


def set_tensor(model: GraphModule, node: Node, value: Tensor) -> None:
    """Give a ``get_attr`` node another value."""
    owner, _, name = str(node.target).rpartition(".")
    setattr(model.get_submodule(owner), name, nn.Parameter(value, requires_grad=False))


def _why_float(node: Node, skip: tuple[str, ...]) -> str | None:
    """Why an operator cannot run as integers; None where it can."""
    layer, operator = layer_name(node), str(node.target)
    if any(layer == name or layer.startswith(f"{name}.") for name in skip):
        return "left in float by the recipe"
    if operator in MASKS and any(_is_masked_score(node, user) for user in node.users):
        return "a masked score is too small for any integer grid: softmax reads it in float"
    if operator not in RULE_OF or (operator == GETITEM and str(node.all_input_nodes[0].target) not in SPLITS):
        return f"no integer kernel for {operator}"
    if operator in ("aten.pad.default", "aten.constant_pad_nd.default") and not _pads_with_zero(node):
        return "pads with a value other than zero"
    if rule_of(node).kind == "weighted" and node.all_input_nodes[1].op != "get_attr":
        return "its weight is computed"
    return None


def _is_masked_score(value: Node, reader: Node) -> bool:
    return str(value.target) in MASKS and str(reader.target) == "aten.softmax.int"


def _pads_with_zero(node: Node) -> bool:
    mode_or_value = node.args[2:]
    return all(argument in ("constant", "reflect", "replicate", "circular", None, 0, 0.0) for argument in mode_or_value)


def _fused_producers(candidates: list[Node]) -> set[Node]:
    """The operators that the clamp after them fuses into, where nothing else reads their result."""
    able, found = set(candidates), set()
    for node in candidates:
        if rule_of(node).kind == "clamp":
            producer = node.all_input_nodes[0]
            if producer in able and len(producer.users) == 1 and rule_of(producer).kind in ("weighted", "computes"):
                found.add(producer)
    return found


def _has_fixed_parameters(root: Node) -> bool:
    rule = RULE_OF.get(str(root.target))
    return rule is not None and rule.kind == "fixed"


def _own_spec(value: Node) -> QuantizationSpec:
    if {str(user.target) for user in value.users} == {"aten.hardswish.default"}:
        return replace(ACTIVATION, observer_or_fake_quant_ctr=HardswishInputGrid)
    if not _has_fixed_parameters(value):
        return ACTIVATION
    rule = rule_of(value)
    grid = FixedGrid.with_args(scale=rule.scale, zero_point=rule.zero_point)
    return replace(ACTIVATION, observer_or_fake_quant_ctr=grid)


def _weight_spec(rule: Rule) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-WEIGHT_QMAX,
        quant_max=WEIGHT_QMAX,
        qscheme=torch.per_channel_symmetric,
        ch_axis=rule.channel_axis,
        observer_or_fake_quant_ctr=PerChannelWeightGrid,
    )


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
