"""Tensors that are joined: each keeps the precision that its other readers need, and a prescribed grid stays."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import Budget, QuantizeConfig, TensorSpec, from_dataset, from_module, quantize
from pipeline.tasks.comparison import sqnr_db


def sqnr_of(module: nn.Module, shape: tuple[int, ...]) -> float:
    torch.manual_seed(0)
    specs = [TensorSpec(name="x", shape=shape)]
    samples = from_dataset([(torch.randn(shape),) for _ in range(32)], specs)
    program = quantize(
        from_module(module.eval(), specs),
        QuantizeConfig(observers=("minmax",)),
        samples,
        budget=Budget(metric="agreement"),
    ).module
    x = torch.randn(16, *shape)
    with torch.no_grad():
        return sqnr_db(module(x), program(x))


class Skip(nn.Module):
    """The decoder's values are a hundred times the skip's, which a pool reads too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 4, 1)
        with torch.no_grad():
            self.b.weight *= 100
            self.out.weight[:, :8] /= 100
            self.out.weight[:, 8:] /= 10

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.a(x))
        deep = F.interpolate(self.b(F.max_pool2d(skip, 2)), scale_factor=2)
        return self.out(torch.cat([deep, skip], 1))


def test_a_skip_keeps_its_own_grid_beside_a_far_wider_tensor() -> None:
    assert sqnr_of(Skip(), (3, 8, 8)) > 25


class Recurrence(nn.Module):
    """Every tensor that is stacked has the grid that tanh prescribes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.entry, self.state = nn.Linear(4, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden, steps = torch.zeros(len(x), 5), []
        for step in range(3):
            hidden = torch.tanh(self.entry(x[:, step]) + self.state(hidden))
            steps.append(hidden)
        return torch.stack(steps, 1)


def test_tensors_of_prescribed_grids_can_be_stacked() -> None:
    assert sqnr_of(Recurrence(), (3, 4)) > 25
