"""Equalisation keeps the float function, respects clamps, and recovers a network whose channels are far apart."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx import GraphModule

from calibration_data.fashion_mnist.train import IMAGE, committed_samples, load_trained
from pipeline import from_module
from pipeline.core import Model, TensorSpec
from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.quantize import quantize
from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.graph.nodes import tensor_of
from pipeline.stages.quantize.improve.equalisation import Pair, channel_factors, equalised, gaining_factors, pairs
from pipeline.tasks.comparison import sqnr_db
from pipeline.tasks.evaluation import evaluate
from tests.networks.architectures import ARCHITECTURES, Architecture

SPEC = (TensorSpec(name="image", shape=(3, 8, 8)),)


def network(between: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        between,
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def first_weight(graph: GraphModule, pair: Pair) -> torch.Tensor:
    return tensor_of(graph, pair.first.all_input_nodes[1])


def imbalanced() -> Model:
    """The same function with hidden channels a thousand times apart."""
    model = Architecture("pair", lambda: network(nn.ReLU()), SPEC).model()
    factors = torch.logspace(-1.5, 1.5, 8)
    with torch.no_grad():
        first, last = model.module.get_submodule("2"), model.module.get_submodule("4")
        first.weight.mul_(factors.view(-1, 1, 1, 1))  # type: ignore[operator, union-attr]
        first.bias.mul_(factors)  # type: ignore[operator, union-attr]
        last.weight.div_(factors.view(1, -1, 1, 1))  # type: ignore[operator, union-attr]
    return model


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e4)), min_size=1, max_size=8))
def test_factors_are_positive_and_balance_ranges_against_weights(channels: list[tuple[float, float]]) -> None:
    peaks, reach = (torch.tensor(values) for values in zip(*channels, strict=True))
    factors = channel_factors(peaks, reach)
    assert (factors > 0).all()
    free = (factors > 1.01e-3) & (factors < 0.99e3) & (peaks > 1e-3) & (reach > 1e-3)
    ratios = (peaks * factors) / (reach / factors)
    assert torch.allclose(ratios[free], ratios[free][:1], rtol=1e-2)


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_equalised_graph_computes_the_same_function(seed: int) -> None:
    architecture = Architecture("pair", lambda: network(nn.ReLU()), SPEC)
    graph = canonical_graph(architecture.model(seed))
    (batch,) = architecture.samples(8, seed=3).batches(8)
    factors = {pair.first.name: torch.rand(len(first_weight(graph, pair))) + 0.5 for pair in pairs(graph)}
    assert len(factors) == 2
    result = equalised(graph, factors)
    with torch.no_grad():
        torch.testing.assert_close(result(*batch.inputs), graph(*batch.inputs), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_pairs_stop_at_relu6_and_at_results_that_are_read_twice() -> None:
    found = {name: len(pairs(canonical_graph(ARCHITECTURES[name].model()))) for name in ("mobilenet_v2", "resnet")}
    assert found["mobilenet_v2"] == 0  # every expansion ends in ReLU6, and residual sums stand between the others
    assert found["resnet"] == 2  # the two convolutions inside each block
    clamped = canonical_graph(Architecture("pair", lambda: network(nn.ReLU6()), SPEC).model())
    assert [pair.seconds[0].args[6:] for pair in pairs(clamped)] == [()]  # only the pair after the depthwise one


def test_network_with_channels_far_apart_is_recovered_by_equalisation() -> None:
    model = imbalanced()
    samples = Architecture("pair", lambda: network(nn.ReLU()), SPEC).samples
    (unseen,) = samples(64, seed=4).batches(64)
    reached = {}
    for equalisation in (False, True):
        config = QuantizeConfig(observers=("minmax",), equalisation=equalisation, mixed_precision=False)
        result = quantize(model, config, samples(64), budget=Budget(), held_out=samples(64, seed=2))
        assert result.history[-1].details["chosen"]["equalised"] is equalisation
        with torch.no_grad():
            reached[equalisation] = sqnr_db(model.module(*unseen.inputs), result.module(*unseen.inputs))
    assert not math.isnan(reached[True])
    assert reached[True] > reached[False] + 6


def test_only_pairs_that_gain_are_scaled() -> None:
    model = imbalanced()
    graph = canonical_graph(model)
    (batch,) = Architecture("pair", lambda: network(nn.ReLU()), SPEC).samples(32).batches(32)
    factors = gaining_factors(graph, batch.inputs)
    last = pairs(graph)[-1]
    assert last.first.name in factors  # the pair that was put out of balance
    even = equalised(graph, factors)
    assert last.first.name not in gaining_factors(even, batch.inputs)  # once even, there is nothing to gain


class PreNorm(nn.Module):
    """Two linear layers read what a layer norm gives, one channel of it fifty times as large as the others."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(16), nn.Linear(16, 8), nn.Linear(16, 8)
        with torch.no_grad():
            self.norm.weight[3] = 50.0
            for layer in (self.first, self.second):
                layer.weight[:, 3] /= 50.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return self.first(y) * self.second(y)


def test_smoothquant_keeps_the_function_and_gains_when_a_channel_of_a_layer_norm_is_an_outlier() -> None:
    net = Architecture("norm", PreNorm, (TensorSpec(name="x", shape=(6, 16)),))
    model, samples = net.model(), net.samples(64)
    graph = canonical_graph(model)
    (batch,) = samples.batches(64)
    (pair,) = pairs(graph)
    assert pair.smooths
    assert len(pair.seconds) == 2
    assert gaining_factors(graph, batch.inputs, norms=False) == {}
    factors = gaining_factors(graph, batch.inputs)
    with torch.no_grad():
        exact = graph(*batch.inputs)
        torch.testing.assert_close(equalised(graph, factors)(*batch.inputs), exact, rtol=1e-3, atol=1e-4)
    reached = []
    for smoothquant in (False, True):
        config = QuantizeConfig(smoothquant=smoothquant, mixed_precision=False)
        result = quantize(model, config, samples, budget=Budget(), held_out=net.samples(64, seed=2))
        with torch.no_grad():
            reached.append(sqnr_db(exact, result.module(*batch.inputs)))
    assert reached[1] > reached[0] + 3


def far_apart() -> Model:
    """The trained network, the same function, with the hidden channels of every block a thousand times apart."""
    model = from_module(load_trained(), inputs=[IMAGE])
    graph = canonical_graph(model)  # batch norms are folded, so that two weights and a bias carry the factors
    generator = torch.Generator().manual_seed(0)
    factors = {
        pair.first.name: 10 ** (torch.rand(len(first_weight(graph, pair)), generator=generator) * 3 - 1.5)
        for pair in pairs(graph)
    }
    scaled = equalised(graph, factors)
    return replace(model, module=scaled, reference=scaled)


@pytest.mark.slow
def test_trained_network_with_channels_far_apart_is_recovered() -> None:
    model, train = far_apart(), committed_samples("train")
    test = committed_samples("test").take(2000)
    original = evaluate(load_trained(), test)["top1"]
    assert evaluate(model.module, test)["top1"] == pytest.approx(original, abs=1e-3)
    top1 = {}
    for ours in (False, True):
        config = QuantizeConfig(observers=("minmax",), equalisation=ours, bias_correction=ours, mixed_precision=False)
        result = quantize(model, config, train.take(256), budget=Budget(), held_out=train.take(200))
        top1[ours] = evaluate(result.module, test)["top1"]
    print(f"float {original:.2%}, min-max {top1[False]:.2%}, with equalisation and bias correction {top1[True]:.2%}")
    assert top1[False] < original - 0.05
    assert top1[True] > original - 0.01
