"""Tensors that are joined: each keeps the precision that its other readers need, and a prescribed grid stays."""

from __future__ import annotations

import pytest
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


class Detector(nn.Module):
    """Boxes in pixels beside scores between 0 and 1, joined in one output in each way that exports join them."""

    def __init__(self, join: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.boxes, self.scores = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        features = self.trunk(x).relu()
        boxes, scores = self.boxes(features).flatten(2), self.scores(features).flatten(2)
        if self.join == "logits":
            return self.joined(boxes * 8, scores)
        return self.joined(boxes * 100, scores.sigmoid())

    def joined(self, boxes: Tensor, scores: Tensor) -> Tensor:
        if self.join == "stack":
            return torch.stack((boxes, scores), 1)
        if self.join == "permuted":
            return torch.cat((boxes, scores), 1).permute(0, 2, 1)
        return torch.cat((scores, boxes) if self.join == "scores first" else (boxes, scores), 1)


def sqnr_of_parts(join: str) -> tuple[float, float]:
    """Of a detector's scores, and of its boxes."""
    module, shape = Detector(join).eval(), (3, 16, 16)
    specs = [TensorSpec(name="x", shape=shape)]
    samples = from_dataset([(torch.randn(shape),) for _ in range(16)], specs)
    config, budget = QuantizeConfig(observers=("minmax",)), Budget(metric="agreement")
    program = quantize(from_module(module, specs), config, samples, budget=budget).module
    x = torch.randn(16, *shape)
    with torch.no_grad():
        expected, found = module(x), program(x)
    scores = module.joined(torch.zeros(16, 4, 64), torch.ones(16, 4, 64)).bool()
    return sqnr_db(expected[scores], found[scores]), sqnr_db(expected[~scores], found[~scores])


@pytest.mark.parametrize("join", ["cat", "scores first", "permuted", "stack"])
def test_small_scores_survive_beside_large_boxes_when_they_are_one_output(join: str) -> None:
    assert min(sqnr_of_parts(join)) > 25


def test_logits_are_as_precise_as_boxes_that_are_a_few_times_as_wide() -> None:
    scores, boxes = sqnr_of_parts("logits")
    assert scores > boxes - 8  # on one grid, 17 dB less


class Offset(nn.Module):
    """A refinement far smaller than what it is added to; both operands are computed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.coarse, self.fine = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        coarse = self.coarse(x) * 100
        return coarse + self.fine(x), coarse


def test_a_small_term_survives_beside_a_large_one_when_their_sum_is_an_output() -> None:
    module, specs = Offset().eval(), [TensorSpec(name="x", shape=(4,))]
    samples = from_dataset([(torch.randn(4),) for _ in range(64)], specs)
    config, budget = QuantizeConfig(observers=("minmax",), bias_correction=False), Budget(metric="agreement")
    program = quantize(from_module(module, specs), config, samples, budget=budget).module
    x = torch.randn(256, 4)
    with torch.no_grad():
        (total, coarse), (exact, _) = program(x), module(x)
        assert sqnr_db(module.fine(x), total - coarse) > 20  # both carry the coarse part's error
        assert sqnr_db(exact, total) > 25


class Recurrences(nn.Module):
    """What is stacked was moved after its tanh; the stack is read in parts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.RNN(4, 5, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        _, hidden = self.layer(x)
        return torch.cat((hidden[0], hidden[1]), 1)


def test_moved_tensors_of_prescribed_grids_can_be_stacked() -> None:
    assert sqnr_of(Recurrences(), (3, 4)) > 25


class Gates(nn.Module):
    """A sigmoid beside values that its grid, from 0 to 1, would clip."""

    def __init__(self, order: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.order = nn.Linear(4, 4), order

    def forward(self, x: Tensor) -> Tensor:
        parts = (x.sigmoid(), x * 5, x.softmax(-1))
        return self.layer(torch.cat(parts[self.order :] + parts[: self.order], -1)[:, :4] * 0.5)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_prescribed_grid_is_not_imposed_on_what_is_joined_with_it(order: int) -> None:
    assert sqnr_of(Gates(order), (4,)) > 15


class Restored(nn.Module):
    """Boxes a thousand times as large as scores, in one tensor; what reads it makes them alike."""

    def __init__(self, reader: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.boxes, self.scores = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        factor = torch.cat((torch.full((4, 1, 1), 1e-3), torch.ones(4, 1, 1)))
        norm = nn.BatchNorm2d(8)
        norm.running_var.copy_(factor.flatten() ** -2)  # type: ignore[union-attr]
        conv, grouped = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1, groups=8)
        transposed = nn.ConvTranspose2d(8, 4, 2, 2)
        conv.weight.data *= factor
        grouped.weight.data *= factor.repeat_interleave(2, 0)[..., None]
        transposed.weight.data *= factor[..., None]
        product = nn.Module()
        product.forward = lambda x: x * factor  # type: ignore[method-assign]
        self.reader = {
            "batch norm": norm,
            "convolution": conv,
            "grouped convolution": grouped,
            "transposed convolution": transposed,
            "product": product,
        }[reader]

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(torch.cat((self.boxes(x) * 1e3, self.scores(x)), 1))[:, -4:]


def test_a_narrow_tensor_survives_a_join_in_front_of_a_linear_layer() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.boxes, self.scores, self.layer = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(8, 4)
            self.layer.weight.data[:, :4] /= 1000

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.cat((self.boxes(x) * 1e3, self.scores(x)), -1))

    assert sqnr_of(Rows(), (5, 6)) > 25


@pytest.mark.parametrize(
    "reader", ["batch norm", "convolution", "grouped convolution", "transposed convolution", "product"]
)
def test_a_narrow_tensor_survives_a_join_where_its_reader_needs_it(reader: str) -> None:
    assert sqnr_of(Restored(reader), (3, 6, 6)) > 25


class Eightfold(nn.Module):
    """Two tensors whose ranges differ less than many times; the output needs a part of the narrow one alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.narrow, self.wide = nn.Linear(4, 4), nn.Linear(4, 4)
        self.narrow.weight.data[0] /= 8
        self.narrow.bias.data[0] = 0.2
        self.wide.weight.data *= 10

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.narrow(x), self.wide(x)), 1)[:, :1]


def test_a_part_of_a_join_survives_where_the_ranges_differ_little() -> None:
    assert sqnr_of(Eightfold(), (4,)) > 25


class Averaged(nn.Module):
    """An average over many places hides the joined grid's errors, and has a grid as wide itself."""

    def __init__(self, average: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.narrow, self.average = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), average
        self.narrow.weight.data[:], self.narrow.bias.data[:] = 0.3, 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = x + x.mean((2, 3), keepdim=True) * 20
        joined = torch.cat((self.wide(x) * 50, self.narrow(x)), 1)
        if self.average == "pool":
            return F.adaptive_avg_pool2d(joined, 1).flatten(1)[:, 4:]
        if self.average == "pool of a product":
            return F.adaptive_avg_pool2d(joined * 0.5, 1).flatten(1)[:, 4:]
        return joined.flatten(2).mean(-1)[:, 4:]


@pytest.mark.parametrize("average", ["pool", "mean", "pool of a product"])
def test_a_narrow_tensor_survives_an_average_of_what_it_is_joined_with(average: str) -> None:
    assert sqnr_of(Averaged(average), (3, 24, 24)) > 25
