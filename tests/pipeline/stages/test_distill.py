from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.core import CheckpointError, Model, StageError, TensorSpec
from pipeline.data.open import from_dataset
from pipeline.data.samples import SampleSet
from pipeline.models.capture import count_parameters, example_inputs
from pipeline.models.load import from_module
from pipeline.recipe import DistillConfig, Features, PruneConfig, Relations, StudentSource
from pipeline.stages.distill import distill, first_student
from pipeline.stages.prune import prune
from tests.networks.structures import IMAGE, build


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


def pruned() -> Model:
    """A pruned student of a teacher whose answers differ from image to image."""
    teacher = build("residual")
    teacher.classifier.weight.data *= 20
    return prune(from_module(teacher, (IMAGE,)), PruneConfig(macs_ratio=0.6))


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
        distill(Model(module=program, reference=program, inputs=(IMAGE,)), DistillConfig(), samples(8))


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


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("kind", ["attention", "hint"])
def test_distill_brings_features_and_relations_nearer_when_asked(kind: str, labelled: bool) -> None:
    before, data = pruned(), samples(128, labelled=labelled)
    config = DistillConfig(epochs=2, batch_size=32, features=Features(kind=kind), relations=Relations())
    record = distill(before, config, data).history[-1]
    assert record.details["feature_layers"] == {name: name for name in ("layers.0", "layers")}
    assert record.details["epochs"][1]["loss"] < record.details["epochs"][0]["loss"]


def test_distill_teaches_features_of_a_regression_with_two_outputs_when_they_are_named() -> None:
    class Depth(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
            self.depth, self.scale = nn.Conv2d(width, 1, 1), nn.Linear(width, 1)

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            features = self.trunk(image)
            return self.depth(features), self.scale(features.mean((2, 3)))

    model = from_module(Depth(8), (IMAGE,))
    config = DistillConfig(epochs=3, batch_size=16, features=Features(kind="hint", layers=("trunk.0",)))
    narrow = Model(module=Depth(4), reference=model.reference, inputs=(IMAGE,))
    record = distill(narrow, config, samples(64, labelled=False)).history[-1]
    assert record.details["feature_layers"] == {"trunk.0": "trunk.0"}
    assert record.details["epochs"][2]["loss"] < record.details["epochs"][0]["loss"]


def test_distill_trains_another_architecture_when_the_recipe_names_a_student() -> None:
    teacher = build("residual")
    source = StudentSource(factory="tests.networks.structures:build", kwargs={"name": "grouped"})
    model = from_module(teacher, (IMAGE,))
    after = distill(model, DistillConfig(epochs=1, batch_size=32, student=source), samples(64))
    assert type(after.module).__name__ == "Grouped"
    assert after.reference is model.reference
    assert after.history[-1].config["student"]["kwargs"] == {"name": "grouped"}
    fresh = build("grouped")
    assert not torch.equal(after.module.classifier.weight, fresh.classifier.weight)
    assert count_parameters(after.module) == count_parameters(fresh) == after.history[-1].parameters


def test_distill_starts_from_a_checkpoint_when_the_student_has_one(tmp_path: Path) -> None:
    trained = build("grouped", seed=5)
    save_file(trained.state_dict(), tmp_path / "student.safetensors")
    source = StudentSource(
        factory="tests.networks.structures:build", kwargs={"name": "grouped"}, checkpoint=Path("student.safetensors")
    )
    config = DistillConfig(student=source)
    student = first_student(from_module(build("residual"), (IMAGE,)), config, root=tmp_path)
    assert torch.equal(student.classifier.weight, trained.classifier.weight)
    with pytest.raises(CheckpointError, match="no such file"):
        first_student(from_module(build("residual"), (IMAGE,)), config, root=tmp_path / "elsewhere")


def test_distill_draws_the_students_first_weights_from_the_seed_when_it_has_no_checkpoint() -> None:
    model = from_module(build("residual"), (IMAGE,))
    config = DistillConfig(student=StudentSource(factory="tests.networks.structures:Grouped"))
    first, second, other = (first_student(model, config, seed=seed).classifier.weight for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_distill_refuses_when_the_student_cannot_take_the_models_place() -> None:
    model = from_module(build("residual"), (IMAGE,))
    fewer = StudentSource(factory="tests.networks.structures:ResNet", kwargs={"widths": [8], "blocks": 1, "classes": 7})
    with pytest.raises(StageError, match=r"returns \[\[2, 7\]\], the original \[\[2, 10\]\]"):
        distill(model, DistillConfig(student=fewer), samples(8))
    tokens = StudentSource(factory="torch.nn:Linear", kwargs={"in_features": 3, "out_features": 10})
    with pytest.raises(StageError, match="fails on the model's inputs"):
        distill(model, DistillConfig(student=tokens), samples(8))
    with pytest.raises(CheckpointError, match="cannot be called with these kwargs"):
        distill(model, DistillConfig(student=fewer.model_copy(update={"kwargs": {"depth": 3}})), samples(8))
