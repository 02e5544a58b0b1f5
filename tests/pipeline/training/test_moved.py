"""Labels follow augmented images. Where it can be done by hand, it is; else the image itself is the oracle."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.core import StageError, TensorSpec
from pipeline.data.coco import CocoSource
from pipeline.data.labels import ANY, boxes, class_indices, keypoints, mask, numbers, sequences, yes_or_no
from pipeline.data.open import from_source
from pipeline.data.places import MAY_BE_POSITIONS, OTHER_IMAGE, Places
from pipeline.data.samples import Batch
from pipeline.recipe import Augmentation, TrainingConfig
from pipeline.training.augmentation import augmentation
from pipeline.training.loop import fit

FLIP, SHIFT, TURN = Augmentation(horizontal_flip=True), Augmentation(shift=3), Augmentation(rotation=40)
EVERYTHING = Augmentation(horizontal_flip=True, shift=3, rotation=20, color_jitter=0.1)
BOXES, MASK, MAP = boxes(3, 8, 8).places, mask(3, 8, 8).places, Places(kind="map")


def moved(config: Augmentation, images: Tensor, labels: Any, places: Places, seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    return augmentation(config, places=places)(Batch((images,), labels))


def flipped_ones(images: Tensor, found: Tensor) -> list[bool]:
    return [not torch.equal(one, other) for one, other in zip(images, found, strict=True)]


def test_boxes_are_mirrored_with_their_images() -> None:
    images = torch.rand(16, 1, 4, 6)
    label = {"boxes": torch.tensor([[0.0, 1, 2, 3], [1.5, 0, 6, 4]]), "labels": torch.tensor([2, 1])}
    batch = moved(FLIP, images, [label] * 16, BOXES)
    changed = flipped_ones(images, batch.inputs[0])
    assert 2 < sum(changed) < 14
    assert batch.labels is not None
    for mirrored, found in zip(changed, batch.labels, strict=True):
        # in a width of 6, x1, x2 become 6 - x2, 6 - x1
        expected = [[4, 1, 6, 3], [0, 0, 4.5, 4]] if mirrored else label["boxes"].tolist()
        assert found["boxes"].tolist() == expected
        assert found["labels"].tolist() == [2, 1]


def test_boxes_follow_a_shift_and_are_cut_and_dropped_at_the_edge() -> None:
    images = torch.zeros(200, 1, 8, 8)
    images[:, :, 0:2, 0:4] = 1.0
    label = {"boxes": torch.tensor([[0.0, 0, 4, 2]]), "labels": torch.tensor([0]), "crowd": torch.tensor([True])}
    batch = moved(SHIFT, images, [label] * 200, BOXES)
    counts = set()
    assert batch.labels is not None
    for image, found in zip(batch.inputs[0][:, 0], batch.labels, strict=True):
        rows, columns = image.any(1).nonzero()[:, 0].tolist(), image.any(0).nonzero()[:, 0].tolist()
        counts.add(len(rows))
        expected = [[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]] if rows else []
        assert found["boxes"].tolist() == expected
        assert len(found["labels"]) == len(found["crowd"]) == len(expected)
    assert counts == {0, 1, 2}


def test_box_around_a_turned_square_is_as_wide_as_the_turned_square() -> None:
    images = torch.zeros(50, 1, 41, 41)
    images[:, :, 10:31, 10:31] = 1.0
    label = {"boxes": torch.tensor([[10.0, 10, 31, 31]]), "labels": torch.tensor([0])}
    batch = moved(TURN, images, [label] * 50, BOXES)
    assert batch.labels is not None
    widths = []
    for image, found in zip(batch.inputs[0][:, 0], batch.labels, strict=True):
        seen = (image > 0.05).nonzero()
        around = [seen[:, 1].min(), seen[:, 0].min(), seen[:, 1].max() + 1, seen[:, 0].max() + 1]
        torch.testing.assert_close(found["boxes"][0], torch.stack(around).float(), atol=1.1, rtol=0)
        widths.append(float(found["boxes"][0, 2] - found["boxes"][0, 0]))
    assert max(widths) == pytest.approx(21 * 2**0.5 * 0.98, abs=0.8)  # near 40 of at most 45 degrees


def test_images_without_boxes_and_batches_without_any_are_moved() -> None:
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    one = {"boxes": torch.tensor([[0.0, 0, 2, 2]]), "labels": torch.tensor([0])}
    for labels in ([none, none], [none, one]):
        batch = moved(FLIP, torch.rand(2, 1, 4, 4), labels, BOXES)
        assert batch.labels is not None
        assert [len(found["boxes"]) for found in batch.labels] == [len(label["boxes"]) for label in labels]


@pytest.mark.parametrize("config", [FLIP, SHIFT, EVERYTHING], ids=["flip", "shift", "everything"])
def test_masks_follow_their_images_and_count_for_nothing_beside_them(config: Augmentation) -> None:
    classes = torch.zeros(64, 24, 24, dtype=torch.long)
    classes[:, 4:20, 4:12], classes[:, 4:20, 12:20] = 1, 2
    images = (classes + 1).float()[:, None] / 4
    batch = moved(config.model_copy(update={"color_jitter": 0.0}), images, classes.clone(), MASK)
    assert batch.labels is not None
    assert batch.labels.dtype == torch.int64
    expected = (batch.inputs[0][:, 0] * 4 - 1).round().long()
    expected = torch.where(expected < 0, 255, expected)
    share = (batch.labels == expected).float().mean()
    assert share == 1 if config != EVERYTHING else share > 0.93  # turned images are blurred at edges
    assert (batch.labels != classes).any()


def test_mask_is_turned_by_hand() -> None:
    images, classes = torch.zeros(100, 1, 9, 9), torch.zeros(100, 9, 9, dtype=torch.long)
    classes[:, 4, 6:] = 1  # a bar to the right of the centre
    batch = moved(Augmentation(rotation=180), images, classes, MASK)
    assert batch.labels is not None
    places = [(label == 1).nonzero().float().mean(0) - 4 for label in batch.labels]
    distances = torch.stack(places).norm(dim=1)
    torch.testing.assert_close(distances, torch.full((100,), 3.0), atol=0.6, rtol=0)
    assert {tuple(place.sign().tolist()) for place in places} >= {(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)}
    assert set(batch.labels.unique().tolist()) == {0, 1, 255}


def test_ignored_pixels_stay_ignored() -> None:
    classes = torch.full((8, 4, 4), 255)
    classes[:, :, 0] = 254
    batch = moved(FLIP, torch.rand(8, 1, 4, 4), classes, MASK)
    assert batch.labels is not None
    assert set(batch.labels.flatten().tolist()) == {254, 255}
    assert ((batch.labels == 254).sum((1, 2)) == 4).all()


def test_masks_of_half_the_images_size_are_mirrored() -> None:
    images, classes = torch.rand(16, 1, 8, 8), torch.arange(16).reshape(1, 4, 4).repeat(16, 1, 1)
    batch = moved(FLIP, images, classes, MASK)
    assert batch.labels is not None
    for mirrored, found in zip(flipped_ones(images, batch.inputs[0]), batch.labels, strict=True):
        assert torch.equal(found, classes[0].flip(-1) if mirrored else classes[0])


def test_maps_of_measurements_follow_and_have_none_beside_the_image() -> None:
    depths = 1 + torch.rand(64, 8, 8)
    batch = moved(SHIFT, depths[:, None].clone(), depths, MAP)
    assert batch.labels is not None
    assert torch.equal(batch.labels, batch.inputs[0][:, 0])
    assert (batch.labels == 0).any()


def test_keypoints_change_sides_in_a_mirrored_image() -> None:
    images = torch.rand(16, 1, 4, 6)
    points = torch.tensor([[[0.0, 1, 2], [4, 2, 1], [5, 3, 0]]]).repeat(16, 1, 1)
    batch = moved(FLIP, images, points, keypoints(3, ((0, 1),)).places)
    assert batch.labels is not None
    for mirrored, found in zip(flipped_ones(images, batch.inputs[0]), batch.labels, strict=True):
        # x becomes 5 - x: in pixels, the last is 5; points 0 and 1 change places with all that belongs to them
        assert found.tolist() == ([[1, 2, 1], [5, 1, 2], [0, 3, 0]] if mirrored else points[0].tolist())


def test_keypoints_that_leave_the_image_are_no_longer_labelled() -> None:
    images = torch.zeros(100, 1, 8, 8)
    images[:, 0, 1, 6] = 1.0
    points = torch.tensor([[[6.0, 1.0, 2.0]]]).repeat(100, 1, 1)
    batch = moved(SHIFT, images, points, keypoints(1, ()).places)
    assert batch.labels is not None
    left = 0
    for image, found in zip(batch.inputs[0][:, 0], batch.labels, strict=True):
        seen = image.nonzero().tolist()
        left += not seen
        assert found[0, 2] == (2.0 if seen else 0.0)
        assert not seen or [found[0, 1], found[0, 0]] == seen[0]
    assert 10 < left < 90


@pytest.mark.parametrize("size", [4, 8])
def test_images_as_labels_are_mirrored_whatever_their_size(size: int) -> None:
    images, labels = torch.rand(16, 1, 4, 4), torch.rand(16, 1, size, size)
    batch = moved(FLIP, images, labels, OTHER_IMAGE)
    assert batch.labels is not None
    for index, mirrored in enumerate(flipped_ones(images, batch.inputs[0])):
        assert torch.equal(batch.labels[index], labels[index].flip(-1) if mirrored else labels[index])


def test_labels_without_places_stay_and_unknown_ones_are_dropped_when_pixels_move() -> None:
    images, labels = torch.rand(8, 1, 4, 4), torch.arange(8)
    assert torch.equal(moved(EVERYTHING, images, labels, class_indices().places).labels, labels)  # type: ignore[arg-type]
    assert torch.equal(moved(EVERYTHING, images, labels, ANY.places).labels, labels)  # type: ignore[arg-type]
    places = torch.rand(8)
    assert moved(FLIP, images, places, ANY.places).labels is None
    assert moved(Augmentation(color_jitter=0.2), images, places, ANY.places).labels is places


@pytest.mark.parametrize(
    ("places", "config", "reason"),
    [
        (sequences(5).places, FLIP, "horizontal_flip: the text would have to be read backwards"),
        (sequences(5).places, TURN, "rotation: the text would no longer lie in a line"),
        (sequences(5).places, SHIFT, "shift: the beginning or the end of the text may leave"),
        (keypoints(2).places, FLIP, "horizontal_flip: left and right keypoints would change places"),
        (MAY_BE_POSITIONS, FLIP, "horizontal_flip: the labels may be positions"),
        (OTHER_IMAGE, SHIFT, "shift: the label shows nothing of what is beside"),
        (OTHER_IMAGE, TURN, "rotation: the label shows nothing of what is beside"),
        (OTHER_IMAGE, Augmentation(color_jitter=0.1), "color_jitter: the label would keep its colours"),
        (OTHER_IMAGE, Augmentation(erasing=0.1), "erasing: the label would keep what is erased"),
    ],
)
def test_changes_that_labels_cannot_follow_are_refused_only_where_there_are_labels(
    places: Places, config: Augmentation, reason: str
) -> None:
    images = torch.rand(2, 1, 4, 4)
    with pytest.raises(StageError, match=rf"augment.{reason}"):
        moved(config, images, [torch.ones(1)] * 2, places)
    assert moved(config, images, None, places).labels is None


def test_forms_that_stay_where_they_are() -> None:
    assert [form.places.kind for form in (class_indices(), yes_or_no((4,)), numbers((), MAY_BE_POSITIONS))] == [
        "nowhere"
    ] * 3


def test_training_gives_the_loss_moved_boxes_of_a_coco_file(tmp_path: Path) -> None:
    images, annotations = [], []
    for index in range(8):
        pixels = np.zeros((8, 8), np.uint8)
        pixels[2:5, 1:4] = 255
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "width": 8, "height": 8})
        annotations.append({"id": index, "image_id": index, "category_id": 1, "bbox": [1, 2, 3, 3]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    specs = (TensorSpec(name="image", shape=(1, 8, 8)),)
    samples = from_source(CocoSource(tmp_path / "boxes.json", tmp_path, 1), specs)
    seen = []

    def loss(module: torch.nn.Module, batch: Batch) -> Tensor:
        for image, label in zip(batch.inputs[0][:, 0], batch.labels or [], strict=True):
            lit = image.nonzero()
            seen.append(
                label["boxes"].tolist() == [[*lit.amin(0).flip(0).tolist(), *(lit.amax(0) + 1).flip(0).tolist()]]
            )
        return module(batch.inputs[0]).mean()

    config = TrainingConfig(epochs=2, batch_size=4, augment={"horizontal_flip": True, "shift": 1})
    fit(torch.nn.Conv2d(1, 1, 1), loss, replace(samples, form=boxes(1, 8, 8)), config, seed=0)
    assert seen == [True] * 16


def test_movement_is_the_same_with_and_without_labels() -> None:
    images = torch.rand(8, 1, 8, 8)
    classes = torch.zeros(8, 8, 8, dtype=torch.long)
    with_labels, without = moved(EVERYTHING, images, classes, MASK), moved(EVERYTHING, images, None, MASK)
    assert torch.equal(with_labels.inputs[0], without.inputs[0])
