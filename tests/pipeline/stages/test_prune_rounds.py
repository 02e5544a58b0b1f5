import pytest
import torch

from pipeline.checkpoint import from_module
from pipeline.core import StageError
from pipeline.program import count_macs
from pipeline.recipe import PruneConfig, TeacherConfig, parse_recipe
from pipeline.runner import run
from pipeline.stages.prune import prune
from tests.models import ARCHITECTURES
from tests.networks import IMAGE, build
from tests.pipeline.conftest import Project

RECOVER = TeacherConfig(epochs=1, batch_size=16, learning_rate=0.001)


def test_prune_approaches_its_budget_in_equal_relative_steps_when_it_recovers_between_rounds() -> None:
    architecture = ARCHITECTURES["resnet"]
    before = architecture.artifact()
    config = PruneConfig(macs_ratio=0.4, round_to=1, iterations=3, recover=RECOVER)
    after = prune(before, config, train=architecture.samples(64))
    record, whole = after.history[-1], count_macs(before.module, before.inputs)
    shares = [item["budgets"]["macs"] for item in record.details["rounds"]]
    assert shares == pytest.approx([0.4 ** (1 / 3), 0.4 ** (2 / 3), 0.4])
    macs = [item["macs"] for item in record.details["rounds"]]
    assert macs == sorted(macs, reverse=True)
    for asked, reached in zip(shares, macs, strict=True):
        assert 0.9 * asked < reached / whole <= asked
    assert [len(item["recovery"]) for item in record.details["rounds"]] == [1, 1, 1]
    assert record.macs == macs[-1]


def test_recovery_lowers_the_distance_to_the_teacher_when_it_trains() -> None:
    architecture = ARCHITECTURES["resnet"]
    (batch,) = architecture.samples(64, seed=9).batches(64)
    before = architecture.artifact()
    cut = PruneConfig(macs_ratio=0.5, round_to=1)
    recover = RECOVER.model_copy(update={"epochs": 4})
    trained = cut.model_copy(update={"recover": recover})
    results = [prune(before, config, train=architecture.samples(128)).module for config in (cut, trained)]
    with torch.no_grad():
        expected = before.module(*batch.inputs)
        errors = [(module(*batch.inputs) - expected).square().mean() for module in results]
    assert errors[1] < 0.5 * errors[0]


def test_prune_refuses_to_recover_when_there_is_nothing_to_train_on() -> None:
    with pytest.raises(StageError, match="recover needs samples to train on"):
        prune(from_module(build("residual"), (IMAGE,)), PruneConfig(macs_ratio=0.5, recover=RECOVER))


@pytest.mark.slow
def test_run_gives_recovery_the_training_data_when_a_recipe_asks_for_it(project: Project) -> None:
    project.recipe["stages"] = [{"prune": {"macs_ratio": 0.6, "recover": {"epochs": 1}}}]
    report = run(parse_recipe(project.recipe), project.folder / "out", root=project.folder)
    (only,) = report.stages[0].details["rounds"]
    assert [epoch["epoch"] for epoch in only["recovery"]] == [1]
