"""Every stage that trains does so by the loss of the model's task, and picks epochs by its metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipeline import from_module
from pipeline.core import Model, TensorSpec
from pipeline.data.open import from_dataset
from pipeline.data.samples import SampleSet
from pipeline.recipe import Budget, DistillConfig, PruneConfig, QatConfig, QuantizeConfig, TeacherConfig
from pipeline.stages.distill import distill
from pipeline.stages.prune import prune
from pipeline.stages.quantize import quantize
from pipeline.tasks.task import Task, Tensors
from tests.tasks import task

SPEC = (TensorSpec(name="image", shape=(1, 8, 8)),)
SEGMENTATION = task("segmentation", torch.zeros(1, 3, 8, 8))


def segmenter() -> Model:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 3, 1),
    ]
    return from_module(nn.Sequential(*layers).eval(), SPEC)


def samples(labelled: bool) -> SampleSet:
    images = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    masks = torch.randint(3, (32, 8, 8), generator=torch.Generator().manual_seed(2))
    return from_dataset(list(zip(images, masks, strict=True)) if labelled else [(image,) for image in images], SPEC)


def distilled(model: Model, made: Task, data: SampleSet) -> None:
    distill(model, DistillConfig(epochs=1, batch_size=16), data, task=made)


def recovered(model: Model, made: Task, data: SampleSet) -> None:
    config = PruneConfig(macs_ratio=0.7, recover=TeacherConfig(epochs=1, batch_size=16))
    prune(model, config, data, task=made, train=data)


def trained_in_integers(model: Model, made: Task, data: SampleSet) -> None:
    config = QuantizeConfig(observers=("minmax",), equalisation=False, qat=QatConfig(epochs=1, batch_size=16))
    quantize(model, config, data, task=made, train=data, budget=Budget(max_drop=1.0))


@pytest.mark.parametrize("labelled", [True, False], ids=["with labels", "without"])
@pytest.mark.parametrize("stage", [distilled, recovered, trained_in_integers])
def test_stage_trains_by_the_tasks_loss(stage: Callable[[Model, Task, SampleSet], None], labelled: bool) -> None:
    steps: list[torch.Size] = []
    labels_seen: list[torch.Size] = []

    def terms(student: Tensors, teacher: Tensors, temperature: float) -> list[Tensor]:
        if student[0].requires_grad:
            steps.append(student[0].shape)
        return list(SEGMENTATION.terms(student, teacher, temperature))

    def label_loss(outputs: Tensors, labels: Tensor) -> Tensor:
        labels_seen.append(labels.shape)
        assert SEGMENTATION.label_loss is not None
        return SEGMENTATION.label_loss(outputs, labels)

    own = replace(SEGMENTATION, terms=terms, label_loss=label_loss)
    if not labelled:  # a metric that needs none, to choose by
        own = replace(
            own, metrics=task("fidelity", torch.zeros(1, 3, 8, 8)).metrics, predict=lambda outputs, _: outputs
        )
    stage(segmenter(), own, samples(labelled))
    assert set(steps) == {(16, 3, 8, 8)}
    assert set(labels_seen) == ({(16, 8, 8)} if labelled else set())


def test_epoch_is_kept_by_the_direction_of_the_tasks_metric() -> None:
    """A rate so high that the error only rises: the first epoch is the best, as less is better."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    specs = (TensorSpec(name="x", shape=(4,)),)
    inputs = torch.randn(64, 4)
    with torch.no_grad():
        data = from_dataset(list(zip(inputs, network(inputs), strict=True)), specs)
    config = DistillConfig(epochs=4, batch_size=16, learning_rate=0.3, early_stop=4, max_grad_norm=1000.0)
    made = task("regression", torch.zeros(1, 1))
    result = distill(from_module(network, specs), config, data, task=made, held_out=data)
    details = result.history[-1].details
    errors = [epoch["metric"] for epoch in details["epochs"]]
    assert details["metric"] == "mae"
    assert details["kept_epoch"] == 1 + min(range(len(errors)), key=errors.__getitem__)
    assert max(errors) > 1.5 * min(errors)
