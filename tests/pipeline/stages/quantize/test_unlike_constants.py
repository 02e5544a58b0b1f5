"""Constants whose numbers are too unlike for one grid, and values that a prescribed grid clamps, stay in float."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline import Budget, QuantizeConfig, TensorSpec, from_dataset, from_module, quantize
from pipeline.tasks.comparison import sqnr_db


def reached(module: nn.Module, shape: tuple[int, ...]) -> tuple[float, set[str]]:
    """The SQNR in dB that the program reaches on its own samples, and why operators stay in float."""
    torch.manual_seed(0)
    specs = [TensorSpec(name="x", shape=shape)]
    x = torch.randn(64, *shape)
    samples = from_dataset([(each,) for each in x], specs)
    config, budget = QuantizeConfig(observers=("minmax",)), Budget(metric="agreement")
    made = quantize(from_module(module.eval(), specs), config, samples, budget=budget, held_out=samples)
    with torch.no_grad():
        return sqnr_db(module(x), made.module(x)), {entry.reason.split(",")[0] for entry in made.history[-1].skipped}


UNLIKE = "the numbers of a constant are too unlike for one grid"
CLAMPED = "the grid that its kernel prescribes would clamp its largest values"


class DeadChannel(nn.Module):
    """A norm behind an activation; one of its channels was constant in training, so its factor is some 300."""

    def __init__(self, variance: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.layer.weight.data[2], self.layer.bias.data[2] = 0, -1  # type: ignore[index]
        self.norm.running_var[2] = variance  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x).relu())


def test_a_norm_of_a_dead_channel_keeps_the_other_channels() -> None:
    sqnr, reasons = reached(DeadChannel(0), (4,))
    assert sqnr > 30
    assert UNLIKE in reasons


def test_a_norm_of_like_channels_runs_as_integers() -> None:
    sqnr, reasons = reached(DeadChannel(1), (4,))
    assert sqnr > 30
    assert not reasons


class PerChannel(nn.Module):
    """A constant per channel that someone wrote by hand, applied in one of several ways."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.form = nn.Linear(4, 4), form
        self.register_buffer("constant", torch.tensor([0.01, 0.02, 0.015, 5.0]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        match self.form:
            case "product":
                return (y * self.constant)[:, :3]
            case "sum":
                return ((y * 0.01).relu() + self.constant)[:, :3]
            case "difference":
                return ((y * 0.01).relu() - self.constant)[:, :3]
        return nn.functional.prelu(y, self.constant)[:, :3].clamp(max=0)


@pytest.mark.parametrize("form", ["product", "sum", "difference", "prelu"])
def test_small_numbers_of_a_constant_survive_beside_a_large_one(form: str) -> None:
    sqnr, reasons = reached(PerChannel(form), (4,))
    assert sqnr > 25
    assert UNLIKE in reasons


class Saturated(nn.Module):
    """Gates that are nearly always open, of which an output keeps what is missing to 1."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.form = nn.Linear(4, 3), form
        self.layer.bias.data[:] = 9

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        match self.form:
            case "sigmoid":
                return (1 - y.sigmoid()) * 1e3
            case "tanh":
                return (1 - y.tanh()) * 1e3
            case "softmax":
                return (1 - (y * torch.tensor([1.0, 0.3, 0.3])).softmax(-1)[:, :1]) * 1e3
        return y[:, :1].softmax(-1) * 425 - 424.97  # an axis of one element


@pytest.mark.parametrize("form", ["sigmoid", "tanh", "softmax", "softmax of one"])
def test_values_at_the_end_of_a_prescribed_grid_are_not_clamped_where_an_output_needs_them(form: str) -> None:
    sqnr, reasons = reached(Saturated(form), (4,))
    assert sqnr > 20
    assert CLAMPED in reasons


def test_a_gate_that_reaches_1_runs_as_an_integer_where_its_end_does_not_matter() -> None:
    class Gated(Saturated):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).sigmoid() * x[:, :3]

    sqnr, reasons = reached(Gated("sigmoid"), (4,))
    assert sqnr > 25
    assert not reasons
