"""Ranges by the outputs' error: costs against a NumPy re-derivation, and what the chosen range is worth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.core import Model, TensorSpec
from pipeline.data.open import from_dataset
from pipeline.data.samples import SampleSet
from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.ranges.calibration import calibrate
from pipeline.stages.quantize.ranges.output_error import SHRINKAGE, OutputError, least_output_error, output_errors
from pipeline.stages.quantize.simulation import Simulation
from pipeline.tasks.comparison import sqnr_db

SPEC = TensorSpec(name="x", shape=(16,))


def costs(x: np.ndarray, gradients: list[np.ndarray], low: float, high: float) -> float:
    """Rounding and clipping in ``[low, high]``, one value at a time."""
    step = (high - low) / 255
    total = 0.0
    for g in gradients:
        inside = (x >= low) & (x <= high) & (x != 0)
        total += float((g[inside] ** 2).sum()) * step**2 / 12
        total += float(((g * (np.clip(x, low, high) - x)).sum(1) ** 2).sum())
    return total


def test_costs_are_those_of_a_numpy_re_derivation() -> None:
    rng = np.random.default_rng(0)
    x, gradients = rng.normal(size=(5, 40)), [rng.normal(size=(5, 40)) for _ in range(3)]
    x[:, ::7] = 0.0
    low, high = x.min(), x.max()
    error = OutputError(low, high)
    error.update(torch.from_numpy(x[:2]), [torch.from_numpy(g[:2]) for g in gradients])
    error.update(torch.from_numpy(x[2:]), [torch.from_numpy(g[2:]) for g in gradients])
    expected = [[costs(x, gradients, low * a, high * b) for b in SHRINKAGE.tolist()] for a in SHRINKAGE.tolist()]
    np.testing.assert_allclose(error.costs().numpy(), expected, rtol=1e-9)


def test_range_keeps_its_high_end_when_clipping_it_would_move_the_outputs() -> None:
    x = torch.cat([torch.rand(200, 4), torch.full((200, 1), 8.0)], 1)
    felt, unfelt = OutputError(0.0, 8.0), OutputError(0.0, 8.0)
    felt.update(x, [torch.ones(200, 5)])
    unfelt.update(x, [torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]).expand(200, 5)])
    assert least_output_error([felt]) == (0.0, 8.0)
    assert least_output_error([unfelt]) == (0.0, pytest.approx(8 * float(SHRINKAGE[-1])))
    assert least_output_error([felt, unfelt]) == (0.0, 8.0)


class Deaf(nn.Module):
    """A network whose answer hardly depends on the one feature with large values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.first.weight[0] *= 40
            self.second.weight[:, 0] *= 1e-3

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return y


def samples(count: int, seed: int) -> SampleSet:
    values = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    return from_dataset(torch.utils.data.TensorDataset(values), (SPEC,))


def deaf() -> Model:
    torch.manual_seed(0)
    module = Deaf().eval()
    return Model(module=module, reference=module, inputs=(SPEC,))


def test_outputs_gain_when_the_largest_values_are_hardly_felt() -> None:
    model = deaf()
    found = calibrate(canonical_graph(model), samples(256, 0), batch_size=64, methods=("minmax", "mse", "output_mse"))
    (batch,) = samples(256, 1).batches(256)
    simulation, reached = Simulation(found), {}
    with torch.no_grad():
        exact = model.module(*batch.inputs)
        for method in ("minmax", "mse", "output_mse"):
            reached[method] = sqnr_db(exact, simulation.configure(method, "none")(*batch.inputs))
    assert reached["output_mse"] > max(reached["minmax"], reached["mse"]) + 3


class Labels(nn.Module):
    """Answers with a class number alone."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x).argmax(1)


def test_no_costs_and_another_method_when_no_float_comes_out() -> None:
    module = Labels()
    graph = canonical_graph(Model(module=module, reference=module, inputs=(SPEC,)))
    data = samples(64, 0)
    assert output_errors(graph, {"x": (-4.0, 4.0)}, data, batch_size=64) == {}
    found = calibrate(graph, data, batch_size=64, methods=("mse", "output_mse"))
    name = next(iter(found.statistics))
    assert found.range_of((name,), "output_mse") == found.range_of((name,), "mse")


class Detector(nn.Module):
    """Boxes a thousand times as large as scores, from one tensor of which only the scores need the outliers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.boxes, self.scores = nn.Linear(16, 4), nn.Linear(16, 4)
        with torch.no_grad():
            self.boxes.weight *= 1000
            self.boxes.weight[:, 0] = 0  # the feature with large values
            self.scores.weight[:, 0] = 0.5

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.boxes(x), self.scores(x)


def test_small_outputs_count_as_much_as_large_ones() -> None:
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(1)) * torch.tensor([8.0, *[1.0] * 15])
    module = Detector()
    model = Model(module=module, reference=module, inputs=(SPEC,))
    low, high = float(x.min()), float(x.max())
    errors = output_errors(
        canonical_graph(model), {"x": (low, high)}, from_dataset([(row,) for row in x], [SPEC]), batch_size=64
    )
    chosen = least_output_error([errors["x"]])
    assert chosen[1] > 0.8 * high


def test_a_network_of_integers_alone_has_no_values_to_examine() -> None:
    module = nn.Embedding(5, 3)
    ids = TensorSpec(name="ids", shape=(4,), dtype="int64")
    model = Model(module=module, reference=module, inputs=(ids,))
    samples = from_dataset([(torch.arange(4),)] * 3, [ids])
    assert output_errors(canonical_graph(model), {}, samples, batch_size=2) == {}
