import pytest
import torch
from torch import nn

from pipeline.core import RecipeError, TensorSpec
from pipeline.models.load import from_module
from pipeline.recipe import PruneConfig, Sparsity, TeacherConfig, parse_recipe
from pipeline.stages.prune import prune
from pipeline.stages.prune.sparsity import sparsify, zero_ratio
from tests.networks.architectures import ARCHITECTURES
from tests.networks.structures import IMAGE, build

VECTOR = (TensorSpec(name="x", shape=(8,)),)


def test_sparsify_keeps_the_two_largest_of_four_neighbours_when_the_pattern_is_2_of_4() -> None:
    layer = nn.Linear(8, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.1, -0.2, 0.4, 0.3]])
    sparse, skipped = sparsify(layer, Sparsity(pattern=(2, 4)))
    assert sparse.weight.tolist() == [[0, -4.0, 3.0, 0, 0, 0, pytest.approx(0.4), pytest.approx(0.3)]]
    assert skipped == ()
    assert layer.weight.count_nonzero() == 8


def test_sparsify_groups_along_input_channels_and_names_what_cannot_be_cut_when_layers_are_convolutions() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=8))
    sparse, skipped = sparsify(module, Sparsity(pattern=(2, 4)))
    kept = (sparse[1].weight != 0).view(8, 2, 4, 3, 3).sum(2)
    assert kept.eq(2).all()
    assert [layer.layer for layer in skipped] == ["0", "2"]
    assert skipped[0].reason == "3 weights in a row cannot be cut into groups of 4"


def test_sparsify_zeroes_the_smallest_share_of_every_layer_when_a_ratio_is_given() -> None:
    layer = nn.Linear(5, 2)
    layer.weight.data = torch.tensor([[5.0, 1.0, -2.0, 9.0, 8.0], [3.0, -10.0, 7.0, 6.0, 4.0]])
    sparse, _ = sparsify(layer, Sparsity(ratio=0.3))
    assert sparse.weight.tolist() == [[5.0, 0, 0, 9.0, 8.0], [0, -10.0, 7.0, 6.0, 4.0]]
    assert zero_ratio(sparse) == 0.3


def test_prune_reports_zeros_as_no_gain_when_sparsity_is_all_that_is_asked_for() -> None:
    before = from_module(build("residual"), (IMAGE,))
    record = prune(before, PruneConfig(sparsity=Sparsity(ratio=0.5))).history[-1]
    assert record.details["sparsity_ratio"] == pytest.approx(0.5, abs=0.001)
    assert "neither smaller nor faster" in record.details["sparsity_note"]
    assert record.parameters == sum(parameter.numel() for parameter in before.module.parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_recovery_leaves_every_zero_at_zero_and_moves_the_rest(optimizer: str) -> None:
    architecture = ARCHITECTURES["resnet"]
    recover = TeacherConfig(epochs=1, batch_size=16, optimizer=optimizer, learning_rate=0.001)
    config = PruneConfig(sparsity=Sparsity(pattern=(2, 4)), recover=recover)
    sparse = prune(architecture.model(), config.model_copy(update={"recover": None})).module
    trained = prune(architecture.model(), config, train=architecture.samples(64)).module
    assert zero_ratio(sparse) > 0.4
    assert zero_ratio(trained) == zero_ratio(sparse)
    for before, after in zip(sparse.parameters(), trained.parameters(), strict=True):
        if before.ndim > 1:
            assert torch.equal(before == 0, after == 0)
            assert not torch.equal(before, after)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"prune": {"sparsity": {"ratio": 0.5}}}, {"distill": {}}], "distill would fill the zeros"),
        ([{"prune": {"sparsity": {"ratio": 0.5, "pattern": [2, 4]}}}], "give either ratio or pattern"),
        ([{"prune": {"sparsity": {"pattern": [4, 2]}}}], "N must be smaller than M"),
        ([{"prune": {"macs_ratio": 0.5, "iterations": 3}}], "add recover"),
    ],
    ids=["distilled after", "both", "more than all", "rounds without training"],
)
def test_recipe_is_refused_when_its_sparsity_or_rounds_are(stages: list[dict[str, object]], message: str) -> None:
    recipe = {"name": "x", "model": {"checkpoint": "m.pt2"}, "data": {"evaluation": {"npz": "t.npz"}}, "stages": stages}
    with pytest.raises(RecipeError, match=message):
        parse_recipe(recipe)
