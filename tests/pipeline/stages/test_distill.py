import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.checkpoint import from_module
from pipeline.core import ModelArtifact, StageError, TensorSpec
from pipeline.data import Batch, SampleSet, from_dataset
from pipeline.distillation import distillation_loss
from pipeline.program import example_inputs
from pipeline.recipe import DistillConfig, PruneConfig
from pipeline.stages.distill import distill
from pipeline.stages.prune import prune
from tests.networks import IMAGE, build


class Images(torch.utils.data.Dataset):
    """Noise with one bright quadrant, which is the label."""

    def __init__(self, count: int, seed: int, labelled: bool = True) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(count, 1, 12, 12, generator=generator)
        self.labels = torch.randint(4, (count,), generator=generator)
        self.labelled = labelled
        for image, label in zip(self.images, self.labels.tolist(), strict=True):
            image[0, 6 * (label // 2) :, 6 * (label % 2) :][:6, :6] += 2

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return (self.images[index], self.labels[index]) if self.labelled else (self.images[index],)


def samples(count: int = 256, seed: int = 0, labelled: bool = True) -> SampleSet:
    return from_dataset(Images(count, seed, labelled), (IMAGE,))


def pruned() -> ModelArtifact:
    """A pruned student of a teacher whose answers differ from image to image."""
    teacher = build("residual")
    teacher.classifier.weight.data *= 20
    return prune(from_module(teacher, (IMAGE,)), PruneConfig(macs_ratio=0.6))


def numpy_log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_distillation_loss_equals_the_formula_in_numpy_when_labels_are_mixed_in() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, 5, 3))
    x, labels = rng.normal(size=(4, 3)), np.array([0, 3, 4, 1])
    layers = []
    for weight in weights:
        layer = nn.Linear(3, 5, bias=False).double()
        layer.weight.data = torch.from_numpy(weight)
        layers.append(layer)
    student, teacher = layers
    s, t = x @ weights[0].T, x @ weights[1].T
    log_s, log_t = numpy_log_softmax(s / 3), numpy_log_softmax(t / 3)
    soft = 9 * (np.exp(log_t) * (log_t - log_s)).sum(1).mean()
    hard = -numpy_log_softmax(s)[np.arange(4), labels].mean()
    batch = Batch((torch.from_numpy(x),), torch.from_numpy(labels))
    loss = distillation_loss(teacher, temperature=3.0, alpha=0.7)
    assert math.isclose(loss(student, batch).item(), 0.7 * soft + 0.3 * hard, rel_tol=1e-12)
    unlabelled = Batch(batch.inputs, None)
    assert math.isclose(loss(student, unlabelled).item(), soft, rel_tol=1e-12)


def test_distillation_loss_is_the_relative_squared_error_when_outputs_are_no_logits() -> None:
    class Constant(nn.Module):
        def __init__(self, *values: float) -> None:
            super().__init__()
            self.values = values

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return tuple(torch.full((len(x), 1, 2), value) for value in self.values)

    loss = distillation_loss(Constant(2.0, 100.0), temperature=4.0, alpha=0.5)
    batch = Batch((torch.zeros(3, 1),), None)
    assert math.isclose(loss(Constant(1.0, 90.0), batch).item(), 1 / 4 + 100 / 10_000, rel_tol=1e-6)


@pytest.mark.parametrize("labelled", [True, False])
def test_distill_moves_the_student_to_the_teacher_and_records_every_epoch_when(labelled: bool) -> None:
    before = pruned()
    data = samples(512, labelled=labelled)
    after = distill(
        before, DistillConfig(epochs=6, batch_size=32, learning_rate=0.05, alpha=1.0), data, held_out=data.take(64)
    )
    images = torch.stack([Images(64, 9)[index][0] for index in range(64)])
    with torch.no_grad():
        target, first, last = (
            module(images).log_softmax(1) for module in (before.reference, before.module, after.module)
        )
    assert (last - target).square().mean() < 0.25 * (first - target).square().mean()
    record = after.history[-1]
    epochs = record.details["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3, 4, 5, 6]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert all(0 <= epoch["metric"] <= 1 for epoch in epochs)
    assert record.details["kept_epoch"] == 6
    assert (record.macs, record.parameters) == (before.history[-1].macs, before.history[-1].parameters)


def test_distill_changes_neither_teacher_nor_input_and_ends_in_eval_mode() -> None:
    before = pruned()
    copies = [
        {key: value.clone() for key, value in module.state_dict().items()}
        for module in (before.module, before.reference)
    ]
    after = distill(before, DistillConfig(epochs=1), samples(128))
    for module, copied in zip((before.module, before.reference), copies, strict=True):
        assert all(torch.equal(copied[key], value) for key, value in module.state_dict().items())
        assert not module.training
    assert not after.module.training
    assert after.module.stem[0].weight.is_contiguous()
    assert after.reference is before.reference


def test_distill_gives_the_same_weights_when_the_seed_is_the_same() -> None:
    before = pruned()
    images = example_inputs((IMAGE,), 4)
    first, second, other = (
        distill(before, DistillConfig(epochs=1, batch_size=32), samples(128), seed=seed).module(*images)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_distill_refuses_when_the_model_is_an_exported_program() -> None:
    program = torch.export.export(build("residual"), example_inputs((IMAGE,), 2)).module()
    with pytest.raises(StageError, match=r"\(\.pt2\) cannot be trained"):
        distill(ModelArtifact(module=program, reference=program, inputs=(IMAGE,)), DistillConfig(), samples(8))


def test_distill_trains_when_the_inputs_are_tokens_and_there_are_two_outputs() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(11, 8)
            self.logits, self.score = nn.Linear(8, 3), nn.Linear(8, 1)

        def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
            features = self.embedding(tokens).mean(1)
            return self.logits(features), self.score(features)

    tokens = TensorSpec(name="tokens", shape=(6,), dtype="int64")
    data = [torch.randint(11, (6,)) for _ in range(64)]
    after = distill(
        from_module(Tagger(), (tokens,)), DistillConfig(epochs=1, batch_size=16), from_dataset(data, (tokens,))
    )
    assert after.history[-1].details["epochs"][0]["loss"] >= 0
