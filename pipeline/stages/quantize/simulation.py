"""Simulation: float graphs that round where a quantized program does, and the programs that they become."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from pipeline.stages.quantize.graph.capabilities import rule_of
from pipeline.stages.quantize.graph.nodes import add_parameter, argument, by_key, channel_axis, set_tensor, tensor_of
from pipeline.stages.quantize.graph.scheme import Scheme, scheme_of
from pipeline.stages.quantize.improve.adaround import round_adaptively
from pipeline.stages.quantize.improve.correction import (
    BiasCorrection,
    Correcting,
    bias_name,
    mean_shift,
    output_means,
)
from pipeline.stages.quantize.ranges.calibration import Calibration
from pipeline.stages.quantize.scales.annotator import Int8Quantizer
from pipeline.stages.quantize.scales.biases import round_biases, rounded_bias
from pipeline.stages.quantize.scales.grids import ActivationGrid, grids_of, simulate
from pipeline.stages.quantize.scales.numbers import channel_scales, fake_quantize
from pipeline.stages.quantize.scales.settle import settle_scales


class Simulation:
    """A float graph that rounds where a quantized program does; each trial sets its ranges, biases and weights.

    Args:
        scheme: What runs as integers; the calibration's own when absent.
    """

    def __init__(self, calibration: Calibration, scheme: Scheme | None = None) -> None:
        self._calibration = calibration
        self._scheme = scheme or calibration.scheme
        self._float_nodes = by_key(calibration.graph)
        graph = copy.deepcopy(calibration.graph)
        nodes = by_key(graph)
        for key in self._scheme.weighted:
            _give_own_bias(graph, nodes[key], bias_name(key))
        graph.recompile()
        self.graph: GraphModule = prepare_pt2e(graph, Int8Quantizer(self._scheme))
        self._nodes = by_key(self.graph)
        self._rounded: dict[str, dict[str, Tensor]] = {}
        self._configured: tuple[str, BiasCorrection, bool] | None = None

    def configure(self, method: str, bias_correction: BiasCorrection, *, adaround: bool = False) -> GraphModule:
        """Set ranges, biases and weights, and return the graph, which rounds everywhere.

        Args:
            method: How ranges are read: one of `METHODS`.
            adaround: Round weights as AdaRound chooses, not to the nearest integer.
        """
        simulate(self.graph, grids_of(self.graph))
        if self._configured == (method, bias_correction, adaround):
            return self.graph
        self._configured = method, bias_correction, adaround
        found = self._calibration
        for grid in grids_of(self.graph):
            if isinstance(grid, ActivationGrid):
                grid.set_range(*found.range_of(tuple(grid.holds), method))
        settle_scales(self.graph)
        empirical = bias_correction == "empirical"
        self._set_weights({})
        self._set_biases(bias_correction)
        if adaround:
            if method not in self._rounded:
                self._rounded[method] = round_adaptively(
                    found.graph, self.graph, found.inputs, correct_biases=empirical
                )
                self._set_biases(bias_correction)
            self._set_weights(self._rounded[method])
        if empirical:
            with torch.no_grad():
                Correcting(self.graph, self._expected).run(*found.few_inputs)
        return self.graph

    @cached_property
    def _expected(self) -> dict[str, Tensor]:
        return output_means(self._calibration.graph, self._scheme.weighted, self._calibration.few_inputs)

    def _set_weights(self, rounded: Mapping[str, Tensor]) -> None:
        """Set these weights, by the operator's key, and restore the float graph's for all others."""
        for key in self._scheme.weighted:
            weight = self._float_nodes[key].all_input_nodes[1]
            value = rounded.get(key, tensor_of(self._calibration.graph, weight))
            set_tensor(self.graph, weight, value.clone())  # training changes them; the calibration's stay

    def _set_biases(self, bias_correction: BiasCorrection) -> None:
        """Restore the float graph's biases, and add the analytic correction if it is asked for."""
        for key in self._scheme.weighted:
            bias = self.graph.get_parameter(bias_name(key))
            own = argument(self._float_nodes[key], 2)
            value = tensor_of(self._calibration.graph, own) if isinstance(own, Node) else torch.zeros_like(bias)
            if bias_correction == "analytic":
                value = value + self._analytic_shift(key)
            bias.data = rounded_bias(self.graph, self._nodes[key], value)

    def _analytic_shift(self, key: str) -> Tensor:
        node = self._float_nodes[key]
        weight, axis = tensor_of(self._calibration.graph, node.all_input_nodes[1]), rule_of(node).channel_axis
        lost = weight - fake_quantize(weight, channel_scales(weight, axis), axis)
        operator: Any = node.target
        return mean_shift(operator, self._calibration.means[key], lost, tuple(node.args[3:]))


class Simulations:
    """The simulations that trials compare, each made when it is first asked for.

    There is one for each set of layers left in float, with and without equalised channels.

    Args:
        skip: Names of modules that the recipe leaves in float.

    Attributes:
        calibration: Of the canonical graph.
        equalised: Of the same graph with equalised channels; None until that has been calibrated.
    """

    def __init__(self, calibration: Calibration, skip: tuple[str, ...] = ()) -> None:
        self.calibration = calibration
        self.equalised: Calibration | None = None
        self._skip = skip
        self._schemes: dict[tuple[str, ...], Scheme] = {}
        self._simulations: dict[tuple[bool, tuple[str, ...]], Simulation] = {}

    def scheme(self, float_layers: tuple[str, ...] = ()) -> Scheme:
        """What runs as integers when these layers stay in float, in addition to the recipe's."""
        if float_layers not in self._schemes:
            seen, skip = self.calibration, (*self._skip, *float_layers)
            self._schemes[float_layers] = scheme_of(seen.graph, skip, seen.spans, seen.precise)
        return self._schemes[float_layers]

    def simulation(self, *, equalised: bool, float_layers: tuple[str, ...]) -> Simulation:
        """The simulation with these layers in float, with or without equalised channels."""
        calibration = self.equalised if equalised else self.calibration
        assert calibration is not None
        key = equalised, float_layers
        if key not in self._simulations:
            self._simulations[key] = Simulation(calibration, self.scheme(float_layers))
        return self._simulations[key]


def convert(prepared: GraphModule) -> GraphModule:
    """The quantized program of a prepared graph: Q/DQ operators in place of grids. The graph itself is consumed."""
    converted: GraphModule = convert_pt2e(prepared, fold_quantize=False)
    round_biases(converted)
    return converted


def _give_own_bias(graph: GraphModule, node: Node, name: str) -> None:
    """Give a weighted operator a bias that no other operator reads."""
    channels = node.meta["val"].shape[channel_axis(node.target)]
    with graph.graph.inserting_before(node):
        node.args = (*node.args[:2], add_parameter(graph, name, torch.zeros(channels)), *node.args[3:])
