"""Biases are whole numbers of the accumulator's unit, in every weighted operator of a quantized network."""

from __future__ import annotations

import torch

from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.quantize import quantize
from pipeline.stages.quantize.graph.capabilities import WEIGHTED
from tests.networks.architectures import ARCHITECTURES


def test_biases_are_whole_units_when_the_operator_runs_on_integers() -> None:
    architecture = ARCHITECTURES["resnet"]
    program = quantize(
        architecture.model(),
        QuantizeConfig(),
        architecture.samples(32),
        budget=Budget(metric="agreement", max_drop=0.1),
    ).module
    checked = 0
    for node in program.graph.nodes:
        if node.target in WEIGHTED and len(node.args) > 2:
            activation, weight, bias = node.args[:3]
            scales = program.get_buffer(str(weight.args[1].target)).double()
            units = program.get_parameter(str(bias.target)).detach().double() / (activation.args[1] * scales)
            torch.testing.assert_close(units, units.round(), rtol=1e-6, atol=0.0)
            checked += 1
    assert checked > 5
