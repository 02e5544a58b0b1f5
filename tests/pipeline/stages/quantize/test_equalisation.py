"""Equalisation keeps the float function, respects clamps, and recovers a network whose channels are far apart."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.core import ModelArtifact, TensorSpec
from pipeline.metrics import sqnr_db
from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.quantize import quantize
from pipeline.stages.quantize.canonical import canonical_graph
from pipeline.stages.quantize.equalisation import channel_factors, equalised, input_peaks, pairs
from tests.models import ARCHITECTURES, Architecture

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


def imbalanced() -> ModelArtifact:
    """The same function with hidden channels a thousand times apart."""
    artifact = Architecture("pair", lambda: network(nn.ReLU()), SPEC).artifact()
    factors = torch.logspace(-1.5, 1.5, 8)
    with torch.no_grad():
        first, last = artifact.module.get_submodule("2"), artifact.module.get_submodule("4")
        first.weight.mul_(factors.view(-1, 1, 1, 1))  # type: ignore[operator, union-attr]
        first.bias.mul_(factors)  # type: ignore[operator, union-attr]
        last.weight.div_(factors.view(1, -1, 1, 1))  # type: ignore[operator, union-attr]
    return artifact


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e4)), min_size=1, max_size=8))
def test_factors_are_positive_and_balance_ranges_against_weights(channels: list[tuple[float, float]]) -> None:
    peaks, reach = (torch.tensor(values) for values in zip(*channels, strict=True))
    factors = channel_factors(peaks, reach)
    assert (factors > 0).all()
    free = (factors > 1.01e-3) & (factors < 0.99e3) & (peaks > 1e-3) & (reach > 1e-3)
    ratios = (peaks * factors) / (reach / factors)
    assert torch.allclose(ratios[free], ratios[free][:1], rtol=1e-2)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_equalised_graph_computes_the_same_function(seed: int) -> None:
    architecture = Architecture("pair", lambda: network(nn.ReLU()), SPEC)
    graph = canonical_graph(architecture.artifact(seed))
    (batch,) = architecture.samples(8, seed=3).batches(8)
    result = equalised(graph, input_peaks(graph, batch.inputs))
    with torch.no_grad():
        torch.testing.assert_close(result(*batch.inputs), graph(*batch.inputs), rtol=1e-3, atol=1e-5)


def test_pairs_stop_at_relu6_and_at_results_that_are_read_twice() -> None:
    found = {name: len(pairs(canonical_graph(ARCHITECTURES[name].artifact()))) for name in ("mobilenet_v2", "resnet")}
    assert found["mobilenet_v2"] == 0  # every expansion ends in ReLU6, and residual sums stand between the others
    assert found["resnet"] == 2  # the two convolutions inside each block
    clamped = canonical_graph(Architecture("pair", lambda: network(nn.ReLU6()), SPEC).artifact())
    assert [pair.second.args[6:] for pair in pairs(clamped)] == [()]  # only the pair after the depthwise one


def test_network_with_channels_far_apart_is_recovered_by_equalisation() -> None:
    artifact = imbalanced()
    samples = Architecture("pair", lambda: network(nn.ReLU()), SPEC).samples
    (unseen,) = samples(64, seed=4).batches(64)
    reached = {}
    for equalisation in (False, True):
        config = QuantizeConfig(observers=("minmax",), equalisation=equalisation, mixed_precision=False)
        result = quantize(artifact, config, samples(64), budget=Budget(), held_out=samples(64, seed=2))
        assert result.history[-1].details["chosen"]["equalised"] is equalisation
        with torch.no_grad():
            reached[equalisation] = sqnr_db(artifact.module(*unseen.inputs), result.module(*unseen.inputs))
    assert not math.isnan(reached[True])
    assert reached[True] > reached[False] + 6
