"""AdaRound against every possible rounding of a tiny layer, and in a trained network."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calibration_data.fashion_mnist.train import IMAGE, committed_samples, load_trained
from pipeline import from_module
from pipeline.core import TensorSpec
from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.quantize import quantize
from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.improve.adaround import rows_at, up_or_down
from pipeline.stages.quantize.ranges.calibration import calibrate
from pipeline.stages.quantize.simulation import Simulation, convert
from pipeline.tasks.comparison import sqnr_db
from tests.networks.architectures import Architecture, conv_bn

aten = torch.ops.aten


def error(rows: np.ndarray, values: np.ndarray, targets: np.ndarray, *, relu: bool = False) -> float:
    outputs = rows @ values
    if relu:
        outputs, targets = np.maximum(outputs, 0), np.maximum(targets, 0)
    return float(np.square(outputs - targets).mean())


@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
def test_rounding_is_nearly_the_best_of_all_when_every_one_is_tried(relu: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(8, 8, generator=generator)
    rows = torch.rand(200, 8, generator=generator) @ mixing  # correlated inputs, as activations are
    weight = torch.randn(1, 1, 8, generator=generator)
    scales = torch.full((1, 1, 1), 0.25)
    targets = rows @ weight[0].T
    chosen = up_or_down(
        weight, scales, rows[None], targets[None], activation=torch.relu if relu else lambda values: values
    )
    codes = (chosen / scales).numpy().ravel()
    np.testing.assert_array_equal(codes, np.rint(codes))
    below = np.floor((weight / scales).numpy().ravel())
    assert set(codes - below) <= {0.0, 1.0}

    x, y = rows.numpy(), targets.numpy().ravel()
    everything = [error(x, 0.25 * (below + np.array(up)), y, relu=relu) for up in itertools.product((0, 1), repeat=8)]
    nearest = error(x, 0.25 * np.rint((weight / scales).numpy().ravel()), y, relu=relu)
    ours = error(x, chosen.numpy().ravel(), y, relu=relu)
    assert ours < 0.5 * nearest
    assert sorted(everything).index(pytest.approx(ours)) < 5  # of 256


def test_codes_stay_in_the_narrow_range_when_a_weight_lies_at_its_end() -> None:
    weight = torch.tensor([[[1.27, -1.27, 0.004]]])
    chosen = up_or_down(weight, torch.full((1, 1, 1), 0.01), torch.rand(1, 50, 3), torch.rand(1, 50, 1) + 9)
    assert (chosen / 0.01).abs().max() <= 127.001


@pytest.mark.parametrize(
    ("operator", "x_shape", "weight_shape", "arguments"),
    [
        (aten.conv2d.default, (3, 4, 9, 8), (6, 4, 3, 5), ([2, 1], [1, 2])),
        (aten.conv2d.default, (3, 4, 9, 8), (8, 1, 3, 3), ([1, 1], [2, 2], [2, 2], 4)),
        (aten.conv1d.default, (3, 4, 9), (6, 2, 3), ([2], [1], [1], 2)),
        (aten.linear.default, (3, 5, 4), (6, 4), ()),
    ],
    ids=["conv2d", "depthwise", "conv1d", "linear"],
)
def test_rows_times_the_weight_are_the_operator_at_those_positions(
    operator: object, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], arguments: tuple[object, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(x_shape, generator=generator), torch.randn(weight_shape, generator=generator)
    graph = torch.fx.Graph()
    node = graph.call_function(operator, (graph.placeholder("x"), graph.placeholder("w"), None, *arguments))  # type: ignore[arg-type]
    output: Tensor = operator(x, weight, None, *arguments)  # type: ignore[operator]
    output = output if operator is aten.linear.default else output.movedim(1, -1)
    positions = torch.unravel_index(
        torch.randint(output[..., 0].numel(), (20,), generator=generator), output.shape[:-1]
    )
    groups = int(arguments[3]) if len(arguments) > 3 else 1  # type: ignore[call-overload]
    rows = rows_at(node, x, weight, positions, groups)
    products = rows @ weight.reshape(groups, len(weight) // groups, -1).transpose(1, 2)
    torch.testing.assert_close(products.transpose(0, 1).flatten(1), output[positions], rtol=1e-4, atol=1e-5)


def small() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 8, 3, 2, act=nn.ReLU6()),
        conv_bn(8, 8, 3, groups=8, act=nn.ReLU6()),
        conv_bn(8, 12, 1),
        nn.Flatten(),
        nn.Linear(192, 4),
    )


@pytest.mark.slow
def test_program_holds_the_chosen_integers() -> None:
    architecture = Architecture("small", small, (TensorSpec(name="image", shape=(3, 8, 8)),))
    found = calibrate(canonical_graph(architecture.model()), architecture.samples(16), batch_size=16)
    simulation = Simulation(found)
    program = convert(simulation.configure("minmax", "empirical", adaround=True))
    (batch,) = architecture.samples(16, seed=4).batches(16)
    moved = checked = 0
    for node in program.graph.nodes:
        if node.target == torch.ops.quantized_decomposed.quantize_per_channel.default:
            weight = program.get_parameter(node.args[0].target)
            scales = program.get_buffer(node.args[1].target).reshape(-1, *[1] * (weight.ndim - 1))
            codes = weight / scales
            torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
            exact = found.graph.get_parameter(node.args[0].target) / scales
            assert ((codes.round() - exact).abs() < 1 + 1e-4).all()
            moved += int((codes.round() != exact.round()).sum())
            checked += 1
    assert checked == 4
    assert moved > 10
    with torch.no_grad():
        assert torch.isfinite(program(*batch.inputs)).all()


@pytest.mark.slow
def test_adaround_gains_on_the_trained_network() -> None:
    model = from_module(load_trained(), inputs=[IMAGE])
    train, test = committed_samples("train"), committed_samples("test").take(1000)
    reached = {}
    for adaround in (False, True):
        config = QuantizeConfig(observers=("minmax",), adaround=adaround, equalisation=False, mixed_precision=False)
        result = quantize(model, config, train.take(128), budget=Budget(), held_out=train.take(256))
        (batch,) = test.batches(1000)
        with torch.no_grad():
            reached[adaround] = sqnr_db(model.module(*batch.inputs), result.module(*batch.inputs))
    assert reached[True] > reached[False] + 0.25  # 0.5 dB above correction of biases alone
