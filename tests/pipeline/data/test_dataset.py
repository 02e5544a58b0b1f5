from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset, default_collate

from pipeline.core import DataError, Preprocessing, TensorSpec
from pipeline.data.labels import ANY, LabelForm, boxes, class_indices
from pipeline.data.open import from_dataset
from pipeline.data.source import DataSource
from tests.pipeline.data.opening import COLOUR, GREY, open_set


def test_from_dataset_yields_inputs_and_labels_when_given_a_torch_dataset() -> None:
    images, labels = torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 2, 3, 4])
    batches = list(from_dataset(TensorDataset(images, labels), GREY).batches(2))
    assert [len(batch.inputs[0]) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([batch.inputs[0] for batch in batches]), images)


def test_factory_is_imported_from_the_working_directory_when_the_recipe_names_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_data.py").write_text(
        "import torch\n"
        "def numbers(count):\n"
        "    images = torch.arange(count * 16.0).reshape(count, 1, 4, 4)\n"
        "    return torch.utils.data.TensorDataset(images, torch.arange(count))\n"
    )
    monkeypatch.chdir(tmp_path)
    samples = open_set(DataSource(factory="my_data:numbers", kwargs={"count": 3}), scale=2.0)
    (batch,) = samples.batches(3)
    assert batch.inputs[0].flatten().tolist() == [2.0 * value for value in range(48)]
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 2]


class Items:
    """A Dataset of these items."""

    def __init__(self, *items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._items[index]


TWO = (TensorSpec(name="image", shape=(1, 4, 4)), TensorSpec(name="age", shape=(1,)))
PICTURE, AGE = torch.zeros(1, 4, 4), torch.ones(1)
BOXES = {"boxes": torch.tensor([[0.0, 0, 2, 2]]), "labels": torch.tensor([1])}


def labels_of(dataset: Any, form: LabelForm, specs: Any = GREY, collate: Any = None) -> Any:
    samples = from_dataset(dataset, specs, collate=collate)
    (batch,) = replace(samples, form=form).batches(len(dataset))
    assert len(batch.inputs) == len(specs)
    return batch.labels


@pytest.mark.parametrize(
    "item",
    [
        (PICTURE, AGE, 1),
        ((PICTURE, AGE), 1),
        [[PICTURE, AGE], 1],
        ({"age": AGE, "image": PICTURE}, 1),
        {"age": AGE, "image": PICTURE, "label": 1},
        {"age": AGE, "image": PICTURE, "target": torch.tensor(1)},
    ],
    ids=["flat", "tuple", "lists", "mapping and label", "mapping", "mapping of tensors"],
)
def test_items_of_every_structure_give_inputs_and_label(item: Any) -> None:
    assert labels_of(Items(item, item), class_indices(2), TWO).tolist() == [1, 1]


def test_targets_keep_any_structure_when_only_the_users_metrics_know_it() -> None:
    target = ({"a": torch.ones(2), "b": [1, 2]}, "text", 3)
    (found, again) = labels_of(Items((PICTURE, target), (PICTURE, target)), ANY)
    assert found[0]["a"].tolist() == [1, 1]
    assert found[0]["b"].tolist() == [1, 2]
    assert found[1:] == ["text", again[2]]


def test_boxes_of_a_dataset_are_read_in_the_tasks_form() -> None:
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}
    first, second = labels_of(Items((PICTURE, BOXES), (PICTURE, none)), boxes(2, 4, 4))
    assert first["labels"].tolist() == [1]
    assert second["boxes"].shape == (0, 4)


@pytest.mark.parametrize(
    "collate",
    [
        lambda items: (torch.stack([x for x, _ in items]), [label for _, label in items]),
        lambda items: (torch.stack([x for x, _ in items]), tuple(label for _, label in items)),
        lambda items: {"image": torch.stack([x for x, _ in items]), "labels": [label for _, label in items]},
        lambda items: (
            torch.stack([x for x, _ in items]),
            {name: [label[name] for _, label in items] for name in ("boxes", "labels")},
        ),
    ],
    ids=["list", "tuple", "mapping", "parts together"],
)
def test_own_collate_makes_the_batch(collate: Any) -> None:
    found = labels_of(Items(*[(PICTURE, BOXES)] * 3), boxes(2, 4, 4), collate=collate)
    assert [label["labels"].tolist() for label in found] == [[1]] * 3


def test_parts_that_torchs_collate_puts_together_are_taken_apart() -> None:
    items = Items(*[(PICTURE, {"kind": index, "size": torch.tensor([index, 2.0])}) for index in range(3)])
    found = labels_of(items, ANY, collate=default_collate)
    assert [(float(label["kind"]), label["size"].tolist()) for label in found] == [(i, [i, 2.0]) for i in range(3)]


@pytest.mark.parametrize(
    ("items", "collate", "message"),
    [
        (((PICTURE, 0), (PICTURE, None)), None, "gives a label for some samples only"),
        (((PICTURE, 0), (PICTURE, 9)), None, "sample 1 has label 9"),
        (((PICTURE, 0), (PICTURE, "cat")), None, "sample 1 has the label 'cat'"),
        (((PICTURE, 0),) * 2, lambda _: 1 / 0, "collate fails on samples 0 .*division by zero"),
        (((PICTURE, 0),) * 2, lambda _: (PICTURE[None], [0]), "collate gives 1 samples for 2 items"),
        (((PICTURE, 0),) * 2, lambda items: (torch.stack([PICTURE] * len(items)), [0]), "collate gives 1 labels for 2"),
        (((PICTURE, [1, 2, 3]),) * 2, default_collate, "collate gives 3 labels for 1 items"),
    ],
)
def test_wrong_items_are_one_error_that_names_the_sample(items: Any, collate: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"Items.*{message}"):
        labels_of(Items(*items), class_indices(2), collate=collate)


def test_mapping_may_call_the_only_input_and_the_label_as_data_sets_do() -> None:
    for item in ({"image": PICTURE, "label": 1}, {"picture": PICTURE, "targets": 1}, {"x": PICTURE, "id": 7, "y": 1}):
        specs = (TensorSpec(name="pixels", shape=(1, 4, 4)),)
        assert labels_of(Items(item, item), class_indices(2), specs).tolist() == [1, 1]
    item = {"left": PICTURE, "right": PICTURE + 1, "kind": 1}
    samples = from_dataset([item], GREY, keys=("right",), labels="kind")
    (batch,) = samples.batches(1)
    assert float(batch.inputs[0].mean()) == 1
    assert batch.labels.tolist() == [1]  # type: ignore[union-attr]


def test_rows_whose_label_is_not_found_are_said_to_have_none() -> None:
    samples = from_dataset([{"image": PICTURE, "fine_label": 1}], GREY)
    assert not samples.labelled
    (note,) = samples.source.notes
    assert note.startswith("list: no label is read of image, fine_label; labels: … names one")
    assert from_dataset([{"image": PICTURE}], GREY).source.notes == ()
    assert from_dataset([{"image": PICTURE, "fine_label": 1}], GREY, labels="fine_label").source.notes == ()
    frame = pd.DataFrame({"x": [[1.0]], "kind": [0]})
    (note,) = from_dataset(frame, (TensorSpec(name="x", shape=(1,)),)).source.notes
    assert note.startswith("DataFrame: no label is read of x, kind")


@pytest.mark.parametrize(("mode", "specs"), [("RGB", GREY), ("L", COLOUR), ("P", COLOUR), ("I;16", GREY)])
def test_images_that_pillow_has_decoded_are_read_with_the_models_channels(mode: str, specs: Any) -> None:
    image = Image.new("I;16", (6, 8), 130 << 8) if mode == "I;16" else Image.new("L", (6, 8), 130).convert(mode)
    samples = from_dataset([{"image": image}] * 2, specs, preprocessing=Preprocessing(resize=(4, 4)))
    (batch,) = samples.batches(2)
    torch.testing.assert_close(batch.inputs[0], torch.full((2, *specs[0].shape), 130.0))


def test_samples_of_different_sizes_are_brought_to_one_by_the_preprocessing() -> None:
    rows = [(np.full((3, 6, 8), 5, np.uint8), 0), (np.full((3, 5, 5), 9, np.uint8), 1)]
    (batch,) = from_dataset(rows, COLOUR, preprocessing=Preprocessing(resize=(4, 4))).batches(2)
    assert batch.inputs[0].flatten(1).mean(1).tolist() == [5, 9]


def test_bfloat16_samples_are_read_exactly() -> None:
    rows = [(torch.full((1, 4, 4), 1.5, dtype=torch.bfloat16), torch.tensor(1))]
    (batch,) = from_dataset(rows, GREY).batches(1)
    assert batch.inputs[0].dtype == torch.float32
    assert float(batch.inputs[0].mean()) == 1.5


def test_data_loader_gives_its_samples_in_their_own_order() -> None:
    rows = [(torch.full((1, 4, 4), float(index)), index) for index in range(6)]
    doubled = lambda items: (2 * torch.stack([x for x, _ in items]), [y for _, y in items])  # noqa: E731
    for loader, expected in (
        (DataLoader(rows, batch_size=4, shuffle=True), [0, 1, 2, 3, 4, 5]),  # type: ignore[arg-type]
        (DataLoader(rows, collate_fn=doubled), [0, 2, 4, 6, 8, 10]),  # type: ignore[arg-type]
        (DataLoader(rows, sampler=SubsetRandomSampler([4, 1])), [1, 4]),  # type: ignore[arg-type]
    ):
        (batch,) = from_dataset(loader, GREY).batches(9)
        assert batch.inputs[0][:, 0, 0, 0].tolist() == expected
        assert batch.labels is not None


def test_hugging_face_rows_have_the_numbers_of_the_models_classes() -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    images = [Image.new("L", (4, 4), value) for value in (10, 20)]
    rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1]}, features=features)
    specs = (TensorSpec(name="pixel_values", shape=(1, 4, 4)),)
    (batch,) = from_dataset(rows, specs, classes=("dog", "cow", "cat")).batches(2)
    assert batch.inputs[0][:, 0, 0, 0].tolist() == [10, 20]
    assert batch.labels.tolist() == [2, 0]  # type: ignore[union-attr]
    with pytest.raises(DataError, match="has the class 'cat', which is none of the model's; there are cow, dog"):
        from_dataset(rows, specs, classes=("cow", "dog"))


class Folders(Items):
    """As torchvision's data sets: classes are numbered among those that are there."""

    classes: ClassVar = ["cow", "dog"]


def test_classes_that_a_dataset_names_have_the_models_numbers() -> None:
    found = from_dataset(Folders((PICTURE, 0), (PICTURE, 1)), GREY, classes=("cat", "dog", "cow"))
    assert next(found.batches(2)).labels.tolist() == [2, 1]  # type: ignore[union-attr]
    others = from_dataset(Folders((PICTURE, 0), (PICTURE, 1)), GREY, classes=("0", "1"))
    assert next(others.batches(2)).labels.tolist() == [0, 1]  # type: ignore[union-attr]


def test_frame_has_a_column_for_each_number_of_the_input() -> None:
    rows = pd.DataFrame({"height": [1.5, 2.0], "kind": [0, 1], "weight": [3, 4]})
    specs = (TensorSpec(name="x", shape=(2,)),)
    (batch,) = from_dataset(rows, specs, labels="kind").batches(2)
    assert batch.inputs[0].tolist() == [[1.5, 3], [2, 4]]
    assert batch.labels.tolist() == [0, 1]  # type: ignore[union-attr]


def test_frame_has_paths_and_names_of_classes(tmp_path: Path) -> None:
    for name, value in (("a.png", 10), ("b.png", 20)):
        Image.new("L", (4, 4), value).save(tmp_path / name)
    kinds = pd.Categorical(["dog", "cat"])
    rows = pd.DataFrame({"file": [str(tmp_path / "a.png"), str(tmp_path / "b.png")], "label": kinds})
    (batch,) = from_dataset(rows, GREY, classes=("cat", "dog")).batches(2)
    assert batch.inputs[0][:, 0, 0, 0].tolist() == [10, 20]
    assert batch.labels.tolist() == [1, 0]  # type: ignore[union-attr]
