"""The annotator: writes the quantization scheme of `capabilities` onto a captured graph, for PT2E to carry out.

Every float tensor that an integer operator produces or consumes gets one set of parameters, at the node that makes
it. Tensors linked by operators that only move data form a group that shares its set. An operator followed only by a
clamp has no parameters of its own: its range is the clamp's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import (
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from pipeline.core import SkippedLayer
from pipeline.stages.quantize.capabilities import RULE_OF, Rule
from pipeline.stages.quantize.observers import QMAX, QMIN, WEIGHT_QMAX, ActivationObserver, PerChannelWeightObserver

ACTIVATION = QuantizationSpec(
    dtype=torch.int8,
    quant_min=QMIN,
    quant_max=QMAX,
    qscheme=torch.per_tensor_affine,
    observer_or_fake_quant_ctr=ActivationObserver,
)


@dataclass(frozen=True, slots=True)
class Scheme:
    """Which nodes run as integers, and which values share parameters.

    Attributes:
        quantized: Nodes that run as integer operators.
        roots: The node whose parameters each quantized value uses (often its own).
        skipped: What stays in float, and why.
    """

    quantized: tuple[Node, ...]
    roots: dict[Node, Node]
    skipped: tuple[SkippedLayer, ...]


class Int8Quantizer(Quantizer):  # type: ignore[misc]  # torchao has no type information
    """Static int8: affine per-tensor activations, symmetric narrow-range per-channel weights, float biases.

    Args:
        skip: Names of modules to leave in float, with everything inside them.
    """

    def __init__(self, skip: Iterable[str] = ()) -> None:
        self._skip = tuple(skip)
        self.scheme = Scheme((), {}, ())

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
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: the scheme is complete by construction."""


def plan(model: GraphModule, skip: tuple[str, ...]) -> Scheme:
    """Decide the scheme of a functional ATen graph whose batch norms are folded."""
    quantized, skipped = [], []
    for node in model.graph.nodes:
        if node.op != "call_function" or not is_float_tensor(node):
            continue
        layer = layer_name(node)
        if any(layer == name or layer.startswith(f"{name}.") for name in skip):
            skipped.append(SkippedLayer(layer=layer, reason="left in float by the recipe"))
        elif str(node.target) not in RULE_OF:
            skipped.append(SkippedLayer(layer=layer, reason=f"no integer kernel for {node.target}"))
        else:
            quantized.append(node)

    order = {node: position for position, node in enumerate(model.graph.nodes)}
    candidates = set(quantized)
    inner = {producer for node in quantized if (producer := _fused_producer(node, candidates)) is not None}
    groups = _Groups(order)
    anchored: set[Node] = set()
    for node in quantized:
        values = [value for value in activations(node) if value not in inner]
        if rule_of(node).kind == "moves":
            for value in values:
                groups.join(value, node)
        else:
            anchored.update(values if node in inner else [*values, node])
    quantized_roots = {groups.root(value) for value in anchored}
    members = sorted(anchored | groups.members, key=order.__getitem__)
    roots = {value: root for value in members if (root := groups.root(value)) in quantized_roots}
    return Scheme(tuple(node for node in quantized if node in roots or node in inner), roots, tuple(skipped))


def activations(node: Node) -> list[Node]:
    """The float tensors that an operator takes in, without its weight and bias."""
    if rule_of(node).kind == "weighted":
        return [value for value in node.all_input_nodes[:1] if is_float_tensor(value)]
    return [value for value in node.all_input_nodes if is_float_tensor(value)]


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


def _fused_producer(node: Node, quantized: set[Node]) -> Node | None:
    """The operator that a clamp fuses into, where nothing else reads that operator's result."""
    if rule_of(node).kind != "clamp":
        return None
    producer = node.all_input_nodes[0]
    if producer not in quantized or len(producer.users) != 1:
        return None
    return producer if rule_of(producer).kind in ("weighted", "computes") else None


def _own_spec(value: Node) -> QuantizationSpecBase:
    rule = RULE_OF.get(str(value.target))
    if rule is None or rule.kind != "fixed":
        return ACTIVATION
    return FixedQParamsQuantizationSpec(
        dtype=torch.int8,
        scale=rule.scale,
        zero_point=rule.zero_point,
        quant_min=QMIN,
        quant_max=QMAX,
        qscheme=torch.per_tensor_affine,
    )


def _weight_spec(rule: Rule) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-WEIGHT_QMAX,
        quant_max=WEIGHT_QMAX,
        qscheme=torch.per_channel_symmetric,
        ch_axis=rule.channel_axis,
        observer_or_fake_quant_ctr=PerChannelWeightObserver,
    )


class _Groups:
    """Disjoint sets of values; the root of a set is the value that the graph makes first."""

    def __init__(self, order: dict[Node, int]) -> None:
        self._order = order
        self._parent: dict[Node, Node] = {}

    @property
    def members(self) -> set[Node]:
        return set(self._parent)

    def root(self, value: Node) -> Node:
        while self._parent.get(value, value) is not value:
            value = self._parent[value]
        return value

    def join(self, first: Node, second: Node) -> None:
        self._parent.setdefault(first, first)
        self._parent.setdefault(second, second)
        earlier, later = sorted((self.root(first), self.root(second)), key=self._order.__getitem__)
        self._parent[later] = earlier
