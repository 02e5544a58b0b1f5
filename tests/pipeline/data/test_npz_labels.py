"""Labels of every shape in an npz."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core import DataError
from pipeline.data.labels import (
    ANY,
    LabelForm,
    boxes,
    class_indices,
    keypoints,
    mask,
    numbers,
    sequences,
    token_classes,
    yes_or_no,
)
from pipeline.data.places import MAY_BE_POSITIONS
from pipeline.data.source import DataSource
from tests.pipeline.data.opening import npz, open_set

IMAGES = np.zeros((2, 4, 4), np.uint8)
BOXES = {
    "corners": np.array([[0, 0, 2, 2], [1, 1, 4, 4], [0, 0, 1, 1]], np.float64),
    "kinds": np.array([0, 1, 2]),
    "begins": np.array([0, 2, 3]),
}
PARTS = {"boxes": "corners", "labels": "kinds", "offsets": "begins"}


def labels_of(folder: Path, form: LabelForm, labels: Any, **arrays: Any) -> Any:
    path = npz(folder, images=IMAGES, **arrays).npz
    samples = open_set(DataSource(npz=path, labels=labels))
    (batch,) = replace(samples, form=form).batches(len(samples))
    return batch.labels


def test_masks_values_points_and_frames_are_tensors_of_their_shapes(tmp_path: Path) -> None:
    def read(form: LabelForm, stored: Any) -> Any:
        return labels_of(tmp_path, form, stored=np.asarray(stored), labels="stored").tolist()

    assert read(mask(3, 2, 2), [[[0, 1], [2, 255]]] * 2)[0] == [[0, 1], [2, 255]]
    assert read(numbers((2,), MAY_BE_POSITIONS), [[0.5, 1], [2, -3]]) == [[0.5, 1], [2, -3]]
    assert read(numbers((), MAY_BE_POSITIONS), [[0.5], [2.0]]) == [0.5, 2.0]
    assert read(keypoints(1), [[[1, 2]], [[3, 4]]]) == [[[1, 2, 1]], [[3, 4, 1]]]
    assert read(yes_or_no((3,)), [[0, 1, 1], [0, 0, 0]])[0] == [0, 1, 1]
    assert read(token_classes(3, 2), [[2, -100], [0, 1]]) == [[2, -100], [0, 1]]
    assert read(class_indices(2), [0.0, 1.0]) == [0, 1]


def test_ragged_boxes_are_cut_by_offsets(tmp_path: Path) -> None:
    first, second = labels_of(tmp_path, boxes(3, 4, 4), PARTS, **BOXES)
    assert first["boxes"].tolist() == [[0, 0, 2, 2], [1, 1, 4, 4]]
    assert first["labels"].tolist() == [0, 1]
    assert second["labels"].tolist() == [2]


def test_samples_without_boxes_have_none(tmp_path: Path) -> None:
    begins = np.array([0, 0, 3])
    first, second = labels_of(tmp_path, boxes(3, 4, 4), PARTS, **{**BOXES, "begins": begins})
    assert (first["boxes"].shape, second["boxes"].shape) == ((0, 4), (3, 4))


def test_ragged_texts_are_cut_by_offsets(tmp_path: Path) -> None:
    parts = {"symbols": "text", "offsets": "begins"}
    found = labels_of(tmp_path, sequences(4), parts, text=np.array([1, 2, 3]), begins=np.array([0, 1, 3]))
    assert [text.tolist() for text in found] == [[1], [2, 3]]


def test_several_arrays_by_name_are_a_mapping_for_each_sample(tmp_path: Path) -> None:
    arrays = {"kind": np.array([3, 4]), "map": np.ones((2, 2, 2))}
    first, second = labels_of(tmp_path, ANY, {"kind": "kind", "where": "map"}, **arrays)
    assert (int(first["kind"]), int(second["kind"])) == (3, 4)
    assert first["where"].shape == (2, 2)


@pytest.mark.parametrize(
    ("form", "arrays", "message"),
    [
        (boxes(2, 4, 4), BOXES, r"set.npz: labels.labels: sample 1 has label 2, but the model has 2 classes"),
        (boxes(3, 2, 4), BOXES, r"set.npz: labels.boxes: sample 0 has the box \[1.0, .* is outside the image of 4 x 2"),
        (
            boxes(3, 4, 4),
            {**BOXES, "corners": BOXES["corners"][:, ::-1]},
            r"labels.boxes: sample 0 .* empty or inverted",
        ),
        (
            boxes(3, 4, 4),
            {**BOXES, "corners": BOXES["corners"][:, :3]},
            r"labels.boxes: sample 0 has boxes that are not",
        ),
        (boxes(3, 4, 4), {**BOXES, "begins": np.array([0, 2])}, r"labels.offsets: is not 3 ascending integers"),
        (boxes(3, 4, 4), {**BOXES, "begins": np.array([0, 2, 1])}, r"labels.offsets: is not 3 ascending integers"),
        (boxes(3, 4, 4), {**BOXES, "begins": np.array([0, 2, 4])}, r"labels.offsets: is not 3 ascending integers"),
        (boxes(3, 4, 4), {**BOXES, "kinds": np.array([0.5, 1, 2])}, r"labels.labels: sample 0 has label 0.5"),
    ],
)
def test_wrong_boxes_are_one_error_that_names_sample_and_part(
    tmp_path: Path, form: LabelForm, arrays: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        labels_of(tmp_path, form, PARTS, **arrays)


@pytest.mark.parametrize(
    ("form", "labels", "message"),
    [
        (mask(3, 2, 2), np.full((2, 2, 2), 3), "sample 0 has the value 3 in its mask, but the model has 3 classes"),
        (mask(3, 2, 2), np.zeros((2, 3, 2)), r"sample 0 has a label of shape \(3, 2\), but the task needs \(2, 2\)"),
        (numbers((), MAY_BE_POSITIONS), np.array([1, np.inf]), "sample 1 has a label that is NaN or infinite"),
        (yes_or_no((2,)), np.array([[0, 1], [0, 2]]), "sample 1 has a value other than 0 and 1"),
        (sequences(3), np.array([[1, 2], [1, 3]]), "sample 1 has the symbol 3, not one from 1 to 2"),
        (sequences(3), np.array([[1, 2], [-1, -1]]), "sample 1 has an empty text"),
        (keypoints(2), np.zeros((2, 3, 2)), r"sample 0 has a label of shape \(3, 2\)|needs \(2, 3\)"),
        (class_indices(2), np.array(["a", "b"]), "sample 0 has the label 'a', which is no number"),
    ],
)
def test_wrong_labels_are_one_error_that_names_file_array_and_sample(
    tmp_path: Path, form: LabelForm, labels: Any, message: str
) -> None:
    samples = replace(open_set(npz(tmp_path, images=IMAGES, labels=labels)), form=form)
    with pytest.raises(DataError, match=rf"set.npz: labels: .*({message})"):
        _ = samples.sha256


def test_offsets_without_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels.offsets: names where rows begin, and no array of rows"):
        labels_of(tmp_path, ANY, {"offsets": "begins"}, begins=np.array([0, 1, 2]))
