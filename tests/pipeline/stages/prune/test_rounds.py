from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.core import StageError
from pipeline.core.arrays import Array
from pipeline.data.samples import Source
from pipeline.execution.apply import run
from pipeline.models.capture import count_macs
from pipeline.models.load import from_module
from pipeline.recipe import PruneConfig, TeacherConfig, parse_recipe
from pipeline.stages.prune import prune
from pipeline.tasks.lookup import suggested_for
from tests.networks.architectures import ARCHITECTURES
from tests.networks.structures import IMAGE, build
from tests.pipeline.conftest import Project

RECOVER = TeacherConfig(epochs=1, batch_size=16, learning_rate=0.001)


def test_prune_approaches_its_budget_in_equal_relative_steps_when_it_recovers_between_rounds() -> None:
    architecture = ARCHITECTURES["resnet"]
    before = architecture.model()
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
    before = architecture.model()
    cut = PruneConfig(macs_ratio=0.5, round_to=1)
    recover = RECOVER.model_copy(update={"epochs": 4})
    trained = cut.model_copy(update={"recover": recover})
    results = [prune(before, config, train=architecture.samples(128)).module for config in (cut, trained)]
    with torch.no_grad():
        expected = before.module(*batch.inputs)
        errors = [(module(*batch.inputs) - expected).square().mean() for module in results]
    assert errors[1] < 0.5 * errors[0]


def test_record_tells_of_rounds_only_when_there_was_training_in_them() -> None:
    architecture = ARCHITECTURES["resnet"]
    cut = PruneConfig(macs_ratio=0.5)
    once = prune(architecture.model(), cut).history[-1].details
    trained = prune(architecture.model(), cut.model_copy(update={"recover": RECOVER}), train=architecture.samples(32))
    assert "rounds" not in once
    assert len(trained.history[-1].details["rounds"]) == 1


class KilledError(Exception):
    """Stands for kill -9: nothing after it runs."""


class Dying(Source):
    """A source that can be read so many times; ``seen`` tells what."""

    labelled, labels_where = False, "labels"

    def __init__(self, source: Source, reads: int) -> None:
        self.where, self.reads, self._source = source.where, reads, source
        self.seen: list[tuple[int, ...]] = []

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Array | None]:
        self.reads -= 1
        if self.reads < 0:
            raise KilledError
        self.seen.append(tuple(indices))
        return self._source.read(indices)


@pytest.mark.parametrize(
    ("killed_at", "left"),
    [
        (3, {".state-1"}),
        (4, {".state-1-finished"}),
        (6, {".state-1-finished", ".state-2"}),
    ],
    ids=["in round 1", "after round 1", "in round 2"],
)
def test_prune_ends_in_the_same_bits_when_its_recovery_is_killed_and_resumed(
    killed_at: int, left: set[str], tmp_path: Path
) -> None:
    architecture = ARCHITECTURES["resnet"]
    before, samples = architecture.model(), architecture.samples(64)  # 4 steps in each round
    recover = RECOVER.model_copy(update={"checkpoint_minutes": 0.0})
    config = PruneConfig(macs_ratio=0.4, round_to=1, iterations=2, recover=recover)
    task = suggested_for(before.reference, samples)
    whole = prune(before, config, task=task, train=samples, seed=5)
    killed = replace(samples, source=Dying(samples.source, killed_at))
    with pytest.raises(KilledError):
        prune(before, config, task=task, train=killed, seed=5, checkpoint=tmp_path / ".state")
    assert {path.name for path in tmp_path.iterdir()} == left
    resuming = Dying(samples.source, 8 - 4 * (killed_at // 4))  # finished rounds read nothing again
    again = replace(samples, source=resuming)
    resumed = prune(before, config, task=task, train=again, seed=5, checkpoint=tmp_path / ".state")
    assert resumed.history[-1].details == whole.history[-1].details
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[name], tensor), name
    assert resumed.module.training is whole.module.training is False
    assert list(tmp_path.iterdir()) == []


def test_recovery_draws_samples_in_another_order_in_every_round_and_for_every_seed() -> None:
    architecture = ARCHITECTURES["resnet"]
    samples = architecture.samples(64)  # 4 steps in each round
    config = PruneConfig(macs_ratio=0.4, round_to=1, iterations=2, recover=RECOVER)
    task = suggested_for(architecture.model().reference, samples)
    orders = set()
    for seed in (0, 10):
        source = Dying(samples.source, 8)
        prune(architecture.model(), config, task=task, train=replace(samples, source=source), seed=seed)
        orders |= {tuple(source.seen[:4]), tuple(source.seen[4:])}
    assert len(orders) == 4


def test_record_holds_the_sensitivity_of_the_model_before_the_first_round() -> None:
    architecture = ARCHITECTURES["resnet"]
    samples = architecture.samples(32)
    once = PruneConfig(macs_ratio=0.4, round_to=1, allocation="sensitivity")
    often = once.model_copy(update={"iterations": 2, "recover": RECOVER})
    records = [
        prune(architecture.model(), config, samples, train=samples).history[-1].details for config in (once, often)
    ]
    assert records[0]["sensitivity"] == records[1]["sensitivity"] != []


def test_prune_refuses_to_recover_when_there_is_nothing_to_train_on() -> None:
    with pytest.raises(StageError, match="recover needs samples to train on"):
        prune(from_module(build("residual"), (IMAGE,)), PruneConfig(macs_ratio=0.5, recover=RECOVER))


@pytest.mark.slow
def test_run_gives_recovery_the_training_data_when_a_recipe_asks_for_it(project: Project) -> None:
    project.recipe["stages"] = [{"prune": {"macs_ratio": 0.6, "recover": {"epochs": 1}}}]
    report = run(parse_recipe(project.recipe), project.folder / "out", root=project.folder)
    (only,) = report.stages[0].details["rounds"]
    assert [epoch["epoch"] for epoch in only["recovery"]] == [1]
