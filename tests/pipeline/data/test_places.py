"""Labels follow an image that is resized, letterboxed and cropped; all values by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core import DataError, Preprocessing, TensorSpec
from pipeline.data.dataset import DatasetSource
from pipeline.data.labels import boxes, keypoints, mask, numbers
from pipeline.data.npz import NpzSource
from pipeline.data.open import from_source
from pipeline.data.places import OTHER_IMAGE, Places, clipped
from pipeline.data.samples import Batch, SampleSet
from tests.pipeline.data.opening import GREY, npz

SMALL, WIDE = (4, 4), (2, 4)
"""Heights and widths."""


def read(folder: Any, form: Any, stored: tuple[int, int], labels: Any, **preprocessing: Any) -> Batch:
    """One grey image of this size with a label, as a model of 4 x 4 pixels sees both."""
    images = np.arange(stored[0] * stored[1], dtype=np.float32).reshape(1, 1, *stored)
    named = labels if isinstance(labels, dict) else {"": labels}
    arrays = {name or "labels": array for name, array in named.items()}
    npz(folder, images=images, **arrays)
    names: Any = {name: name for name in labels} if isinstance(labels, dict) else "labels"
    source = NpzSource(folder / "set.npz", ("images",), names)
    specs = (TensorSpec(name="image", shape=(1, 4, 4)),)
    samples = from_source(source, specs, Preprocessing(**preprocessing))
    return SampleSet("test", source, specs, samples.preprocessing, (0,), form).__getitems__([0])


def one_box(*corners: float) -> dict[str, np.ndarray]:
    return {
        "boxes": np.array([corners], np.float32),
        "labels": np.array([0]),
        "offsets": np.array([0, 1]),
    }


@pytest.mark.parametrize(
    ("stored", "preprocessing", "corners", "expected"),
    [
        pytest.param((2, 2), {"resize": (4, 4)}, (0, 1, 1, 2), [0, 2, 2, 4], id="twice as large"),
        pytest.param((8, 4), {"resize": (4, 4)}, (1, 2, 3, 6), [1, 1, 3, 3], id="half as high"),
        pytest.param((2, 4), {"resize": (4, 4), "letterbox": 0}, (0, 0, 2, 1), [0, 1, 2, 2], id="letterbox"),
        pytest.param((8, 4), {"resize": (4, 4), "letterbox": 7}, (0, 0, 4, 8), [1, 0, 3, 4], id="narrow letterbox"),
        pytest.param((6, 6), {"crop": (4, 4)}, (2, 0, 4, 4), [1, 0, 3, 3], id="cropped and cut"),
        pytest.param((8, 12), {"resize": (4, 4), "cover": True}, (2, 2, 6, 6), [0, 1, 2, 3], id="covered"),
        pytest.param((8, 12), {"resize": (8, 8), "cover": True, "crop": (4, 4)}, (5, 3, 7, 5), [1, 1, 3, 3], id="both"),
    ],
)
def test_boxes_follow_when_images_are_resized(
    tmp_path: Any, stored: tuple[int, int], preprocessing: Any, corners: Any, expected: list[float]
) -> None:
    batch = read(tmp_path, boxes(1, 4, 4), stored, one_box(*corners), **preprocessing)
    assert batch.labels is not None
    assert batch.labels[0]["boxes"].tolist() == [expected]


def test_letterbox_keeps_proportions_and_fills_the_rest(tmp_path: Any) -> None:
    batch = read(tmp_path, boxes(1, 4, 4), WIDE, one_box(0, 0, 1, 1), resize=(4, 4), letterbox=9, scale=2.0)
    assert batch.inputs[0][0, 0].tolist() == [[18.0] * 4, [0, 2, 4, 6], [8, 10, 12, 14], [18.0] * 4]


def test_boxes_that_a_crop_cuts_away_are_no_longer_labelled(tmp_path: Any) -> None:
    batch = read(tmp_path, boxes(1, 4, 4), (8, 8), one_box(0, 0, 2, 2), crop=(4, 4))
    assert batch.labels is not None
    assert batch.labels[0]["boxes"].shape == (0, 4)
    assert batch.labels[0]["labels"].tolist() == []


@pytest.mark.parametrize(
    ("corners", "kept"),
    [((-9, 0, 1, 4), True), ((-9.1, 0, 1, 4), False), ((0, 0, 0.5, 0.5), True), ((-1, 0, 0.5, 4), False)],
)
def test_box_stays_labelled_while_a_tenth_and_a_pixel_of_it_are_seen(corners: Any, kept: bool) -> None:
    assert clipped(np.array([corners], np.float64), SMALL)[1].tolist() == [kept]


def test_mask_follows_by_the_nearest_pixel_and_counts_for_nothing_beside_the_image(tmp_path: Any) -> None:
    stored = np.array([[[0, 1], [2, 0]]], np.uint8)
    batch = read(tmp_path, mask(3, 4, 4), (2, 2), stored, resize=(4, 4))
    assert batch.labels is not None
    assert batch.labels[0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 0, 0], [2, 2, 0, 0]]
    wide = np.array([[[0, 1, 2, 0], [2, 0, 1, 1]]], np.uint8)
    boxed = read(tmp_path, mask(3, 4, 4), WIDE, wide, resize=(4, 4), letterbox=0)
    assert boxed.labels is not None
    assert boxed.labels[0].tolist() == [[255] * 4, [0, 1, 2, 0], [2, 0, 1, 1], [255] * 4]


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.float32])
def test_mask_of_every_number_type_counts_for_nothing_beside_the_image(tmp_path: Any, dtype: type) -> None:
    batch = read(tmp_path, mask(2, 4, 4), WIDE, np.ones((1, 2, 4), dtype), resize=(4, 4), letterbox=0)
    assert batch.labels is not None
    assert batch.labels[0].tolist() == [[255] * 4, [1] * 4, [1] * 4, [255] * 4]


def test_labels_stay_where_integer_images_are_not_resized(tmp_path: Any) -> None:
    npz(tmp_path, images=np.zeros((1, 1, 4, 4), np.uint8), **one_box(0, 0, 2, 2))
    source = NpzSource(tmp_path / "set.npz", ("images",), {name: name for name in one_box(0, 0, 1, 1)})
    specs = (TensorSpec(name="image", shape=(1, 4, 4), dtype="uint8"),)
    samples = SampleSet("test", source, specs, Preprocessing(resize=(2, 2)), (0,), boxes(1, 4, 4))
    (label,) = samples.__getitems__([0]).labels or []
    assert label["boxes"].tolist() == [[0, 0, 2, 2]]


def test_mask_of_the_models_size_stays_when_the_image_is_resized(tmp_path: Any) -> None:
    stored = np.arange(16, dtype=np.uint8).reshape(1, 4, 4) % 3
    batch = read(tmp_path, mask(3, 4, 4), (8, 8), stored, resize=(4, 4))
    assert batch.labels is not None
    assert batch.labels[0].tolist() == stored[0].tolist()


def test_map_of_measurements_follows_and_has_none_beside_the_image(tmp_path: Any) -> None:
    form = numbers((4, 4), Places(kind="map"))
    batch = read(tmp_path, form, WIDE, np.full((1, 2, 4), 2.5), resize=(4, 4), letterbox=0)
    assert batch.labels is not None
    assert batch.labels[0].tolist() == [[0.0] * 4, [2.5] * 4, [2.5] * 4, [0.0] * 4]


def test_keypoints_follow_and_are_unlabelled_when_cropped_away(tmp_path: Any) -> None:
    points = np.array([[[0, 0, 2], [3, 3, 1], [3, 3, 0]]], np.float32)
    batch = read(tmp_path, keypoints(3), (4, 4), points, resize=(8, 8), crop=(4, 4))
    assert batch.labels is not None
    # pixel 0's centre is at 0.5, after scaling at 1, which is pixel coordinate 0.5; the crop begins at 2
    assert batch.labels[0].tolist() == [[-1.5, -1.5, 0.0], [4.5, 4.5, 0.0], [4.5, 4.5, 0.0]]
    halved = read(tmp_path, keypoints(3), (8, 8), points, resize=(4, 4))
    assert halved.labels is not None
    assert halved.labels[0].tolist() == [[-0.25, -0.25, 2.0], [1.25, 1.25, 1.0], [1.25, 1.25, 0.0]]


@pytest.mark.parametrize(
    ("corners", "problem"),
    [
        ((0, 0, 3, 9), "is outside the image of 8 x 8"),
        ((3, 0, 1, 2), "is empty or inverted"),
        ((0, 0, np.nan, 2), "is not finite"),
    ],
)
def test_boxes_are_checked_in_the_image_that_they_were_drawn_on(tmp_path: Any, corners: Any, problem: str) -> None:
    with pytest.raises(DataError, match=f"labels.boxes: sample 0 has the box .* which {problem}"):
        read(tmp_path, boxes(1, 4, 4), (8, 8), one_box(*corners), resize=(4, 4))


def test_box_that_rounding_puts_beyond_the_edge_is_cut(tmp_path: Any) -> None:
    batch = read(tmp_path, boxes(1, 4, 4), SMALL, one_box(0, -0.005, 4.01, 4))
    assert batch.labels is not None
    assert batch.labels[0]["boxes"].tolist() == [[0, 0, 4, 4]]


def test_letterbox_without_resize_is_refused() -> None:
    with pytest.raises(ValueError, match="letterbox: says how resize works"):
        Preprocessing(letterbox=0)


def test_cover_without_resize_or_beside_letterbox_is_refused() -> None:
    for others in ({}, {"resize": (4, 4), "letterbox": 0.0}):
        with pytest.raises(ValueError, match="cover: says how resize works"):
            Preprocessing(cover=True, **others)


def test_batch_of_single_reads_is_the_batch_of_one_read(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 255, (5, 4, 4)).astype(np.uint8)
    source = NpzSource(npz(tmp_path, images=images, labels=np.arange(5)).npz, ("images",), "labels")  # type: ignore[arg-type]
    samples = from_source(source, (TensorSpec(name="image", shape=(1, 4, 4)),))
    together = samples.__getitems__(range(5))
    whole = samples.sha256
    source.one_by_one, reads, read = True, list[int](), source.read
    monkeypatch.setattr(source, "read", lambda indices: reads.append(len(indices)) or read(indices))
    alone = samples.__getitems__(range(5))
    assert torch.equal(alone.inputs[0], together.inputs[0])
    assert alone.labels is not None
    assert alone.labels.tolist() == [0, 1, 2, 3, 4]
    assert reads == [1] * 5
    assert from_source(source, samples.inputs).sha256 == whole


def double(shape: tuple[int, ...]) -> Any:
    return numbers(shape, replace(OTHER_IMAGE, size=(shape[1], shape[2])))


@pytest.mark.parametrize("last", [False, True])
def test_image_that_is_the_label_is_resized_as_its_input(tmp_path: Path, last: bool) -> None:
    """A model that doubles: an image of 8 x 8 becomes its input of 4 x 4, and the label of 16 x 16 becomes 8 x 8."""
    label = np.repeat(np.repeat(np.arange(4.0).reshape(1, 2, 2), 8, 1), 8, 2)
    stored = np.moveaxis(label, 0, -1) if last else label
    found = read(tmp_path, double((1, 8, 8)), (8, 8), stored[None], resize=(4, 4)).labels
    quarters = torch.tensor([[0.0, 1], [2, 3]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert found.shape == (1, 1, 8, 8)  # type: ignore[union-attr]
    torch.testing.assert_close(found[0, 0, ::7, ::7], quarters[::7, ::7])  # type: ignore[index]


def test_image_that_is_the_label_is_cropped_and_padded_as_its_input(tmp_path: Path) -> None:
    label = np.arange(256.0).reshape(1, 1, 16, 16)
    found = read(tmp_path, double((1, 8, 8)), (8, 8), label, crop=(4, 4)).labels
    np.testing.assert_array_equal(found, label[:, :, 4:12, 4:12])
    wide = np.ones((1, 1, 4, 8))
    found = read(tmp_path, double((1, 8, 8)), (2, 4), wide, resize=(4, 4), letterbox=0).labels
    np.testing.assert_array_equal(found[0, 0, :, 0], [0, 0, 1, 1, 1, 1, 0, 0])  # type: ignore[index]


def test_image_that_is_the_label_stays_when_it_has_the_outputs_size(tmp_path: Path) -> None:
    label = np.arange(64.0).reshape(1, 1, 8, 8)
    np.testing.assert_array_equal(read(tmp_path, double((1, 8, 8)), (16, 16), label, resize=(4, 4)).labels, label)
    with pytest.raises(DataError, match=r"has a label of shape \(1, 8, 9\), but the task needs \(1, 8, 8\)"):
        read(tmp_path, double((1, 8, 8)), (16, 16), np.zeros((1, 1, 8, 9)), resize=(4, 4))


@pytest.mark.parametrize(
    ("box_format", "stored"),
    [
        ("xyxyn", [0.25, 0.0, 0.75, 0.5]),
        ("xywhn", [0.25, 0.0, 0.5, 0.5]),
        ("cxcywhn", [0.5, 0.25, 0.5, 0.5]),  # as YOLO writes them
    ],
)
def test_boxes_in_shares_of_the_image_follow_its_own_size(box_format: str, stored: list[float]) -> None:
    """In an image of 4 x 8 pixels the box is 2, 0, 6, 2; resized to 4 x 4, its columns are halved."""
    label = {"boxes": np.array([stored]), "labels": np.array([0])}
    source = DatasetSource([(np.zeros((1, 4, 8)), label)], "rows", GREY)
    source.box_format = box_format  # type: ignore[assignment]
    samples = from_source(source, GREY, Preprocessing(resize=(4, 4)))
    (batch,) = replace(samples, form=boxes(1, 4, 4)).batches(1)
    assert batch.labels[0]["boxes"].tolist() == [[1, 0, 3, 2]]  # type: ignore[index]
    label["boxes"] = np.array([[3.0, 0, 6, 2]])
    with pytest.raises(
        DataError, match=r"rows: labels.boxes: sample 0 has the box \[3.0, .*\], which are no shares of"
    ):
        next(replace(samples, form=boxes(1, 4, 4)).batches(1))
