from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.core import StageError, TensorSpec
from pipeline.data.open import from_dataset
from pipeline.data.samples import SampleSet
from pipeline.models.load import from_module
from pipeline.recipe import Importance, PruneConfig
from pipeline.stages.prune import prune
from pipeline.stages.prune.channels import coupled_channels, traceable_copy
from pipeline.stages.prune.importance import scorer
from pipeline.stages.prune.sensitivity import Curve, divergence, sensitivity
from tests.networks.architectures import ARCHITECTURES
from tests.tasks import follows

VECTOR = TensorSpec(name="x", shape=(2,))


def network() -> nn.Module:
    """Two inputs, four hidden units, one output: every value below is worked out by hand from these weights."""
    first, norm, last = nn.Linear(2, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 1, bias=False)
    first.weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 4.0]])
    norm.weight.data = torch.tensor([4.0, 3.0, 2.0, 1.0])
    norm.eps = 0.0
    last.weight.data = torch.tensor([[1.0, 1.0, 2.0, 2.0]])
    return nn.Sequential(first, norm, nn.ReLU(), last).eval()


def samples() -> SampleSet:
    """Inputs (3, 1) and (3, 1): the first is three times the second."""
    return from_dataset([torch.tensor([3.0, 1.0])] * 2, (VECTOR,))


def scores(kind: Importance, module: nn.Module) -> Tensor:
    judged = traceable_copy(module)
    (group,), _ = coupled_channels(
        judged, (VECTOR,), scorer(kind, judged, samples(), follows(torch.zeros(1, 1))), round_to=1, max_layer_ratio=1.0
    )
    return group.importance


@pytest.mark.parametrize(
    ("kind", "sums"),
    [
        # rows of the first layer, the norm's scale, column of the last layer
        ("l1", [1 + 4 + 1, 2 + 3 + 1, 3 + 2 + 2, 4 + 1 + 2]),
        ("l2", [1 + 16 + 1, 4 + 9 + 1, 9 + 4 + 4, 16 + 1 + 4]),
        ("bn_scale", [4, 3, 2, 1]),
        # inputs of the last layer: relu(scale * first(x)) = 1*3*4, 2*1*3, 3*3*2, 4*1*1
        ("activation", [3 + 4 + 12, 2 + 3 + 6, 9 + 2 + 2 * 18, 4 + 1 + 2 * 4]),
    ],
)
def test_scorer_equals_the_hand_computed_sums_over_coupled_weights_when_kind_is(
    kind: Importance, sums: list[float]
) -> None:
    expected = torch.tensor(sums, dtype=torch.float32)
    torch.testing.assert_close(scores(kind, network()), expected / expected.mean())


def test_scorer_equals_the_hand_computed_loss_change_when_kind_is_taylor() -> None:
    # No logits: the loss is y^2 summed over both samples; y = 12 + 6 + 36 + 8 = 62; dL/dw * w = 2 * 2y * part of y,
    # once for each of the three places that carry the part: its row, its scale, its column.
    expected = 2 * 2 * 62 * torch.tensor([12.0, 6.0, 36.0, 8.0])
    torch.testing.assert_close(scores("taylor", network()), expected)  # the mean over those three places


def test_scorer_equals_the_hand_computed_sums_over_gates_and_readers_when_units_are_recurrent() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.last = nn.RNN(2, 2, bias=False, batch_first=True), nn.Linear(2, 1, bias=False)
            self.cell.weight_ih_l0.data = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
            self.cell.weight_hh_l0.data = torch.tensor([[5.0, 6.0], [-7.0, 0.0]])
            self.last.weight.data = torch.tensor([[3.0, 1.0]])

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.cell(x)[0][:, -1])

    judged = traceable_copy(Recurrent())
    score = scorer("l1", judged, None, None)
    sequence = TensorSpec(name="x", shape=(4, 2))
    (group,), _ = coupled_channels(judged, (sequence,), score, round_to=1, max_layer_ratio=0.5)
    gates, reader = torch.tensor([1 + 2 + 5 + 6.0, 3 + 4 + 7]), torch.tensor([3.0, 1.0])
    torch.testing.assert_close(group.importance, (gates / gates.mean() + reader / reader.mean()) / 2)


@pytest.mark.parametrize("kind", ["taylor", "activation"])
def test_prune_asks_for_samples_when_importance_needs_them(kind: Importance) -> None:
    with pytest.raises(StageError, match=f"importance '{kind}' needs samples"):
        prune(from_module(network(), (VECTOR,)), PruneConfig(macs_ratio=0.5, importance=kind))


def test_prune_spares_the_sensitive_layer_when_allocation_is_by_sensitivity() -> None:
    """Of two equal branches one does not reach the output: it alone gives, though its weights are ten times larger."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(2, 32), nn.Linear(2, 32)
            self.from_used, self.from_idle = nn.Linear(32, 10), nn.Linear(32, 10)
            self.idle.weight.data *= 10
            self.from_idle.weight.data.mul_(1e-6)

        def forward(self, x: Tensor) -> Tensor:
            return self.from_used(self.used(x).relu()) * 5 + self.from_idle(self.idle(x).relu())

    torch.manual_seed(0)
    before = from_module(Branches(), (VECTOR,))
    data = from_dataset(list(torch.randn(64, 2)), (VECTOR,))
    config = PruneConfig(macs_ratio=0.65, importance="l2", allocation="sensitivity")
    after = prune(before, config, data)
    assert after.module.used.out_features == 32
    assert after.module.idle.out_features == 8
    curves = {curve["layer"]: curve for curve in after.history[-1].details["sensitivity"]}
    used, idle = curves["used"], curves["idle"]
    assert max(idle["divergence"]) < 1e-6 < min(used["divergence"])
    assert used["removed_ratio"] == [0.25, 0.5, 0.75]  # 8, 16 and 24 of 32 units
    assert used["saved"] == idle["saved"] == [0.125, 0.25, 0.375]  # a unit is 1 of 64, and all cost the same


def test_divergence_equals_the_hand_computed_value_when_outputs_are_logits() -> None:
    # p = (1/2, 1/2) against q = (1/4, 3/4): sum p log(p / q) = (log 2 + log 2/3) / 2
    expected, outputs = torch.zeros(3, 2), torch.tensor([[0.0, torch.tensor(3.0).log()]] * 3)
    assert divergence((outputs,), (expected,), follows(expected)) == pytest.approx(0.14384103622589045, rel=1e-6)


def test_divergence_is_the_relative_squared_error_when_outputs_are_no_logits() -> None:
    two = torch.full((4, 1), 2.0)
    assert divergence((torch.full((4, 1), 3.0),), (two,), follows(two)) == pytest.approx(0.25)


def test_sensitivities_are_measured_once_when_only_the_budget_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ARCHITECTURES["resnet"]
    model, samples = network.model(seed=7), network.samples(16)
    measured = []

    def count(*arguments: Any) -> list[Curve]:
        measured.append(arguments)
        return sensitivity(*arguments)

    monkeypatch.setattr("pipeline.stages.prune.selection.sensitivity", count)
    for ratio in (0.6, 0.5):
        prune(model, PruneConfig(macs_ratio=ratio, allocation="sensitivity"), samples)
    assert len(measured) == 1
    prune(model, PruneConfig(macs_ratio=0.5, allocation="sensitivity", importance="l1"), samples)
    assert len(measured) == 2  # another importance is another order of channels
