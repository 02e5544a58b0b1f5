"""Closed-form bias correction against the plain difference of mean outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.improve.correction import bias_name, channel_means, mean_shift
from pipeline.stages.quantize.ranges.calibration import calibrate
from pipeline.stages.quantize.scales.biases import accumulator_units
from pipeline.stages.quantize.scales.grids import grids_of, simulate
from pipeline.tasks.comparison import sqnr_db
from tests.networks.architectures import ARCHITECTURES
from tests.pipeline.stages.quantize.prepared import prepare

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("operator", "shape", "weight_shape", "arguments", "channels"),
    [
        (aten.linear.default, (64, 5, 6), (4, 6), (), (0, 1)),
        (aten.conv2d.default, (64, 6, 7, 7), (4, 6, 3, 3), ([2, 2], [1, 1]), (0, 2, 3)),
        (aten.conv2d.default, (64, 6, 7, 7), (6, 1, 3, 3), ([1, 1], [1, 1], [1, 1], 6), (0, 2, 3)),
        (aten.conv1d.default, (64, 6, 9), (4, 6, 3), ([1], [1]), (0, 2)),
    ],
    ids=["linear", "conv2d", "depthwise", "conv1d"],
)
def test_mean_shift_restores_the_mean_output_of_every_channel(
    operator,
    shape,
    weight_shape,
    arguments,
    channels,  # type: ignore[no-untyped-def]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x: Tensor = torch.rand(shape, generator=generator)
    weight = torch.randn(weight_shape, generator=generator)
    rounded = (weight * 2).round() / 2
    bias = torch.randn(weight_shape[0], generator=generator)
    corrected = bias + mean_shift(operator, x.mean(0, keepdim=True), weight - rounded, arguments)
    before = operator(x, weight, bias, *arguments).mean(channels)
    uncorrected = operator(x, rounded, bias, *arguments).mean(channels)
    after = operator(x, rounded, corrected, *arguments).mean(channels)
    assert (uncorrected - before).abs().max() > 0.01
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_empirical_correction_gives_every_operator_its_float_mean() -> None:
    architecture = ARCHITECTURES["mobilenet_v2"]
    found = calibrate(canonical_graph(architecture.model()), architecture.samples(48), batch_size=16)
    prepared = prepare(found, method="minmax", bias_correction="empirical")
    simulate(prepared, grids_of(prepared))

    def means(graph: GraphModule) -> dict[str, Tensor]:
        recorded = {}

        class Recording(Interpreter):
            def run_node(self, n: Node) -> Any:
                output = super().run_node(n)
                if n.target in (aten.conv2d.default, aten.linear.default):
                    recorded[n.name] = channel_means(n.target, output)
                return output

        with torch.no_grad():
            Recording(graph).run(*found.inputs)
        return recorded

    expected, actual = means(found.graph), means(prepared)
    assert len(expected) == 12
    operators = {node.name: node for node in prepared.graph.nodes}
    for name, value in expected.items():
        bias = prepared.get_parameter(bias_name(name))
        rounding = accumulator_units(prepared, operators[name]) / 2 + bias.abs() * 2**-11  # to a unit, and to FP16
        assert ((actual[name] - value).abs() <= rounding + 1e-4).all()


def test_a_bias_read_by_two_operators_is_corrected_for_each() -> None:
    architecture = ARCHITECTURES["called_twice"]
    found = calibrate(canonical_graph(architecture.model()), architecture.samples(16), batch_size=16)
    prepared = prepare(found, method="minmax", bias_correction="empirical")
    biases = [name for name, _ in prepared.named_parameters() if name.endswith("_corrected_bias")]
    assert len(biases) == 4
    simulate(prepared, grids_of(prepared))
    with torch.no_grad():
        assert sqnr_db(found.graph(*found.inputs), prepared(*found.inputs)) > 30
