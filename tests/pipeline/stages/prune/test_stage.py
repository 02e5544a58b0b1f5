import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.core import Model, StageError, TensorSpec
from pipeline.models.capture import count_macs, count_parameters, example_inputs
from pipeline.models.load import from_module
from pipeline.recipe import PruneConfig
from pipeline.stages.prune import prune
from pipeline.stages.prune.channels import CoupledChannels, pruning_order
from tests.networks.structures import IMAGE, NETWORKS, build


def model(name: str) -> Model:
    return from_module(build(name), (IMAGE,))


@pytest.mark.parametrize("name", NETWORKS)
def test_prune_meets_the_macs_budget_with_rounded_channels_when_the_network_is(name: str) -> None:
    before = model(name)
    after = prune(before, PruneConfig(macs_ratio=0.5))
    record = after.history[-1]
    assert record.macs == count_macs(after.module, after.inputs) <= 0.5 * count_macs(before.module, before.inputs)
    assert record.parameters == count_parameters(after.module) < count_parameters(before.module)
    assert record.details["budgets"]["macs"]["reached"] == record.macs / count_macs(before.module, before.inputs)
    for layer in record.details["layers"]:
        if layer["after"] != layer["before"]:
            assert layer["after"] % 8 == 0
            assert layer["after"] < layer["before"]
    assert after.module(*example_inputs((IMAGE,), 3)).shape == (3, 10)


@pytest.mark.parametrize("name", NETWORKS)
def test_prune_changes_no_bit_of_its_input_when_it_runs(name: str) -> None:
    before = model(name)
    weights = {key: value.clone() for key, value in before.module.state_dict().items()}
    structure = str(before.module)
    prune(before, PruneConfig(macs_ratio=0.5))
    assert str(before.module) == structure
    assert all(torch.equal(weights[key], value) for key, value in before.module.state_dict().items())
    assert not before.module.training


def test_prune_leaves_frozen_layers_frozen_and_no_gradients_behind() -> None:
    before = model("residual")
    before.module.get_submodule("stem").requires_grad_(False)
    after = prune(before, PruneConfig(macs_ratio=0.5))
    flags = [{name: part.requires_grad for name, part in a.module.named_parameters()} for a in (before, after)]
    assert flags[0] == flags[1]
    assert set(flags[1].values()) == {True, False}
    assert all(part.grad is None for part in after.module.parameters())


def test_prune_keeps_every_channel_when_the_budget_is_the_whole() -> None:
    before = model("residual")
    after = prune(before, PruneConfig(macs_ratio=1.0))
    images = example_inputs((IMAGE,), 3)
    assert torch.equal(after.module(*images), before.module(*images))


def test_prune_meets_both_budgets_when_two_are_given() -> None:
    before = model("residual")
    record = prune(before, PruneConfig(macs_ratio=0.7, parameters_ratio=0.4)).history[-1]
    assert record.macs <= 0.7 * count_macs(before.module, before.inputs)
    assert record.parameters <= 0.4 * count_parameters(before.module)


def test_prune_removes_the_smallest_filters_when_their_norms_are_known() -> None:
    first, second = nn.Conv2d(1, 32, 1, bias=False), nn.Conv2d(32, 10, 1, bias=False)
    strong = torch.randperm(32, generator=torch.Generator().manual_seed(0))[:16]
    first.weight.data.fill_(0.1)
    first.weight.data[strong] = 1.0
    second.weight.data.fill_(1.0)
    module = nn.Sequential(first, nn.ReLU(), second, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    after = prune(from_module(module, (IMAGE,)), PruneConfig(macs_ratio=0.5)).module
    assert after[0].weight.flatten().tolist() == [1.0] * 16


def masked(module: nn.Module, edits: Callable[[nn.Module], list[tuple[nn.Module, torch.Tensor]]]) -> nn.Module:
    """The unpruned network, deaf to the removed channels: its consumers' weights for them are zero."""
    with torch.no_grad():
        for consumer, removed in edits(module):
            consumer.weight[:, removed] = 0
    return module


def missing(whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Indices of the rows of ``whole`` that are not in ``part``, compared by their batch-norm parameters."""
    return torch.tensor([i for i, value in enumerate(whole.tolist()) if value not in part.tolist()], dtype=torch.long)


def missing_rows(whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Indices of the rows of ``whole`` that are not among those of ``part``."""
    kept = {tuple(row) for row in part.tolist()}
    return torch.tensor([i for i, row in enumerate(whole.tolist()) if tuple(row) not in kept], dtype=torch.long)


def test_prune_equals_the_masked_original_when_channels_are_residual() -> None:
    before = model("residual")
    after = prune(before, PruneConfig(macs_ratio=0.4)).module

    def edits(module: nn.Module) -> list[tuple[nn.Module, torch.Tensor]]:
        stem = missing(module.stem[1].weight, after.stem[1].weight)
        last = missing(module.layers[1].bn2.weight, after.layers[1].bn2.weight)
        inner = [
            (block.conv2, missing(block.bn1.weight, small.bn1.weight))
            for block, small in zip(module.layers, after.layers, strict=True)
        ]
        assert len(stem) + len(last) + sum(len(removed) for _, removed in inner) > 0
        return [
            *inner,
            (module.layers[0].conv1, stem),
            (module.layers[1].conv1, stem),
            (module.layers[1].shortcut[0], stem),
            (module.classifier, last),
        ]

    images = example_inputs((IMAGE,), 4)
    torch.testing.assert_close(after(*images), masked(build("residual"), edits)(*images), rtol=1e-4, atol=1e-5)


def test_prune_equals_the_masked_original_when_channels_are_depthwise_and_gated() -> None:
    before = model("mobile")
    after = prune(before, PruneConfig(macs_ratio=0.4)).module

    def edits(module: nn.Module) -> list[tuple[nn.Module, torch.Tensor]]:
        stem = missing(module.stem[1].weight, after.stem[1].weight)
        found = [(module.classifier, stem)]
        for block, small in zip(module.blocks, after.blocks, strict=True):
            hidden = missing(block.expand[1].weight, small.expand[1].weight)
            assert len(missing(block.depthwise[1].weight, small.depthwise[1].weight)) == len(hidden) > 0
            gate = missing(block.squeeze[1].bias, small.squeeze[1].bias)
            found += [(block.expand[0], stem), (block.project[0], hidden), (block.squeeze[1], hidden)]
            found += [(block.squeeze[3], gate)]
        return found

    images = example_inputs((IMAGE,), 4)
    torch.testing.assert_close(after(*images), masked(build("mobile"), edits)(*images), rtol=1e-4, atol=1e-5)


def test_prune_equals_the_masked_original_when_whole_heads_and_hidden_units_leave() -> None:
    before = model("transformer")
    config = PruneConfig(parameters_ratio=0.6, skip=("patches",))  # layer norms make a narrower stream inexact
    record = prune(before, config).history[-1]
    after = prune(before, config).module
    rows = missing_rows(before.module.attention.query.weight, after.attention.query.weight)
    assert rows.view(-1, 4).eq(rows.view(-1, 4)[:, :1] + torch.arange(4)).all()  # heads of 4, whole and aligned
    assert rows.view(-1, 4)[:, 0].remainder(4).eq(0).all()
    assert after.attention.num_heads == 8 - len(rows) // 4
    assert after.attention.all_head_size == 32 - len(rows)
    assert record.details["heads"] == [{"module": "attention", "before": 8, "after": 8 - len(rows) // 4}]

    def edits(module: nn.Module) -> list[tuple[nn.Module, torch.Tensor]]:
        hidden = missing_rows(module.fc1.weight, after.fc1.weight)
        assert len(rows) > 0
        assert len(hidden) > 0
        return [(module.attention.output, rows), (module.fc2, hidden)]

    images = example_inputs((IMAGE,), 4)
    torch.testing.assert_close(after(*images), masked(build("transformer"), edits)(*images), rtol=1e-4, atol=1e-5)


def test_prune_leaves_named_layers_and_the_classifier_alone_and_says_why() -> None:
    before = model("residual")
    after = prune(before, PruneConfig(macs_ratio=0.7, skip=("layers.1.conv1",)))
    reasons = {layer.layer: layer.reason for layer in after.history[-1].skipped}
    coupled = "its channels are coupled with layers.1.conv1, which is named in skip"  # they are its input
    assert reasons == {
        "layers.1.conv1": "named in skip",
        "stem.0": coupled,
        "layers.0.conv2": coupled,
        "classifier": "its channels are the model's output",
    }
    assert after.module.layers[1].conv1.weight.shape[0] == before.module.layers[1].conv1.weight.shape[0]
    assert after.module.classifier.out_features == 10


def test_prune_says_which_layers_are_too_narrow_when_they_cannot_be_rounded() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    record = prune(from_module(module, (IMAGE,)), PruneConfig(macs_ratio=0.6, round_to=16)).history[-1]
    reasons = {layer.layer: layer.reason for layer in record.skipped}
    assert reasons == {
        "0": "12 channels cannot lose any and stay a multiple of 16",
        "4": "16 channels cannot lose any and stay a multiple of 16",
        "8": "its channels are the model's output",
    }


def test_prune_says_how_far_it_came_when_the_budget_cannot_be_reached() -> None:
    with pytest.raises(StageError, match=r"the budget cannot be reached: .* macs is 0\.\d+, not 0\.010"):
        prune(model("residual"), PruneConfig(macs_ratio=0.01))


def test_prune_keeps_a_layer_whole_and_says_why_when_the_forward_needs_its_width() -> None:
    class Rigid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.free, self.fixed, self.last = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.fixed(self.free(x).relu()).view(len(x), 8, 8).flatten(1))

    before = from_module(Rigid(), (TensorSpec(name="x", shape=(8,)),))
    after = prune(before, PruneConfig(macs_ratio=0.5))
    reasons = {layer.layer: layer.reason for layer in after.history[-1].skipped}
    assert reasons.keys() == {"fixed", "last"}
    assert reasons["fixed"].startswith("without some of its channels the model does not run: shape '[1, 8, 8]'")
    assert after.module.fixed.out_features == 64
    assert after.module.free.out_features < 64


def test_prune_meets_absolute_limits_when_they_are_given() -> None:
    before = model("residual")
    limits = {"max_macs": 500_000, "max_parameters": 12_000, "max_size_bytes": 40_000}
    record = prune(before, PruneConfig(**limits)).history[-1]
    assert record.macs <= 500_000
    assert record.parameters <= 10_000  # 4 bytes each, and the buffers of batch norms on top
    assert record.details["budgets"].keys() == {"macs", "parameters", "size_bytes"}


def test_prune_counts_shares_of_the_original_when_it_is_repeated() -> None:
    before = model("residual")
    whole = count_macs(before.module, before.inputs)
    once = prune(before, PruneConfig(macs_ratio=0.8))
    twice = prune(once, PruneConfig(macs_ratio=0.5))
    assert 0.3 * whole < twice.history[-1].macs <= 0.5 * whole
    assert len(twice.history) == 2


def test_prune_refuses_when_the_model_is_an_exported_program() -> None:
    program = torch.export.export(build("residual"), example_inputs((IMAGE,), 2)).module()
    before = Model(module=program, reference=program, inputs=(IMAGE,))
    with pytest.raises(StageError, match=r"a torch\.export program \(\.pt2\) cannot be pruned"):
        prune(before, PruneConfig(macs_ratio=0.5))


@given(
    shapes=st.lists(st.tuples(st.integers(1, 96), st.sampled_from([1, 2, 4])), min_size=1, max_size=4),
    multiple=st.sampled_from([1, 4, 8, 16]),
    max_layer_ratio=st.floats(0.1, 1.0),
    seed=st.integers(0, 99),
)
def test_pruning_order_keeps_every_group_a_multiple_and_above_its_floor_at_every_step(
    shapes: list[tuple[int, int]], multiple: int, max_layer_ratio: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = [
        CoupledChannels(
            f"layer{i}",
            tuple(tuple(unit + block * count for block in range(blocks)) for unit in range(count)),
            torch.rand(count, generator=generator),
            multiple=multiple,
        )
        for i, (count, blocks) in enumerate(shapes)
    ]
    removed: dict[str, set[int]] = {group.layer: set() for group in groups}
    last = -math.inf
    for step in pruning_order(groups, max_layer_ratio):
        count = len(step.group.units)
        assert step.damage >= last
        last = step.damage
        assert removed[step.group.layer].isdisjoint(step.channels)
        removed[step.group.layer].update(step.channels)
        gone = [unit for unit in step.group.units if set(unit) <= removed[step.group.layer]]
        assert sum(map(len, gone)) == len(removed[step.group.layer])  # whole units only
        kept = count - len(gone)
        assert kept > 0
        assert kept % multiple == 0
        assert kept >= count * (1 - max_layer_ratio) - 1e-9
