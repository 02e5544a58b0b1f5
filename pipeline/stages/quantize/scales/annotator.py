"""The annotator: writes a scheme onto a copy of its canonical graph, for PT2E to insert grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from pipeline.stages.quantize.graph.capabilities import Rule, aten, kind_of, rule_of
from pipeline.stages.quantize.graph.nodes import by_key, key_of, tensor_of
from pipeline.stages.quantize.graph.scheme import Scheme, has_fixed_parameters
from pipeline.stages.quantize.scales.grids import ActivationGrid, FixedGrid, PerChannelWeightGrid
from pipeline.stages.quantize.scales.hardswish import HardswishInputGrid
from pipeline.stages.quantize.scales.numbers import QMAX, QMIN, WEIGHT_QMAX

ACTIVATION = QuantizationSpec(
    dtype=torch.int8,
    quant_min=QMIN,
    quant_max=QMAX,
    qscheme=torch.per_tensor_affine,
    observer_or_fake_quant_ctr=ActivationGrid,
)


class Int8Quantizer(Quantizer):  # type: ignore[misc]  # torchao has no type information
    """Static int8: affine per-tensor activations, symmetric narrow-range per-channel weights, float biases."""

    def __init__(self, scheme: Scheme) -> None:
        self._scheme = scheme

    def annotate(self, model: GraphModule) -> GraphModule:
        """Put a PT2E annotation on every node of the scheme."""
        nodes = by_key(model)
        for key in self._scheme.quantized:
            node = nodes[key]
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(_annotated=True)
            if kind_of(node) == "weighted":
                node.meta[Q_ANNOTATION_KEY].input_qspec_map[node.args[1]] = _weight_spec(rule_of(node))
        first = self._annotate_copies(nodes)
        for key, root in self._scheme.roots.items():
            annotation = nodes[key].meta.setdefault(Q_ANNOTATION_KEY, QuantizationAnnotation(_annotated=True))
            own = root == key and key not in first
            annotation.output_qspec = (
                _own_spec(nodes[key]) if own else SharedQuantizationSpec(first.get(root, nodes[root]))
            )
        return model

    def _annotate_copies(self, nodes: Mapping[str, Node]) -> dict[str, tuple[Node, Node]]:
        """Let consumers read copies on their own grids; by consumer, the copy that its grid is made for.

        PT2E makes a grid where it first meets it: where a consumer shares its grid with none of what it reads, that is
        at the first copy.
        """
        first: dict[str, tuple[Node, Node]] = {}
        for key, reader in self._scheme.requantized:
            root, value, consumer = self._scheme.roots[reader], nodes[key], nodes[reader]
            annotation = consumer.meta[Q_ANNOTATION_KEY]
            annotation.allow_implicit_sharing = False  # PT2E would join like specs to one grid
            makes = root == reader and root not in first
            if makes:
                first[root] = value, consumer
            spec = _own_spec(consumer) if makes else SharedQuantizationSpec(first.get(root, nodes[root]))
            annotation.input_qspec_map[value] = spec
        return first

    def prepare_obs_or_fq_callback(self, model: GraphModule, grids: dict[Any, Any]) -> None:
        """Set the scales of every weight, and tell each activation's grid which values it is for."""
        for place, grid in grids.items():
            if isinstance(grid, PerChannelWeightGrid):
                grid.set_weight(tensor_of(model, place[0]))
            elif isinstance(grid, ActivationGrid) and isinstance(place, Node):
                grid.holds.append(key_of(place))

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: the scheme is complete by construction."""


def _own_spec(value: Node) -> QuantizationSpec:
    if not has_fixed_parameters(value):
        only_hardswish = {user.target for user in value.users} == {aten.hardswish.default}
        return replace(ACTIVATION, observer_or_fake_quant_ctr=HardswishInputGrid) if only_hardswish else ACTIVATION
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
