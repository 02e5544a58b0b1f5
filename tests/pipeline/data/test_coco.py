import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks

from pipeline.core import DataError, Preprocessing, TensorSpec
from pipeline.data.labels import boxes, keypoints, mask
from pipeline.data.open import open_samples
from pipeline.data.samples import SampleSet
from pipeline.data.source import DataSource
from pipeline.tasks.coco import BoxPrecision
from tests.pipeline.data.opening import COLOUR


def stored() -> dict[str, Any]:
    """Two images of 8 x 4 pixels, one without an object; category ids that neither begin at 0 nor follow each other."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 8, "height": 4},
            {"id": 3, "file_name": "sub/b.png", "width": 8, "height": 4},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [2, 0, 4, 2], "iscrowd": 0, "area": 8},
            {"id": 2, "image_id": 7, "category_id": 18, "bbox": [0, 0, 8, 4], "iscrowd": 1},
        ],
        "categories": [{"id": 90, "name": "cat"}, {"id": 18, "name": "dog", "supercategory": "animal"}],
    }


def write_files(folder: Path, content: Any, *, images: bool = True) -> None:
    if images:
        (folder / "sub").mkdir(exist_ok=True)
        for name in ("a.png", "sub/b.png"):
            Image.new("RGB", (8, 4)).save(folder / name)
    (folder / "boxes.json").write_text(content if isinstance(content, str) else json.dumps(content))


def opened(folder: Path, content: Any, classes: tuple[str, ...] = (), *, write: bool = True) -> SampleSet:
    write_files(folder, content, images=write)
    source = DataSource(folder=folder, coco=folder / "boxes.json")
    samples = open_samples(source, COLOUR, Preprocessing(resize=(4, 4)), name="test", classes=classes)
    return replace(samples, form=boxes(2, 4, 4))


def test_coco_gives_corners_in_the_models_input_and_classes_in_the_order_of_ids(tmp_path: Path) -> None:
    samples = opened(tmp_path, stored())
    (batch,) = samples.batches(2)
    assert batch.labels is not None
    first, second = batch.labels
    assert first["boxes"].tolist() == [[1, 0, 3, 2], [0, 0, 4, 4]]  # half as wide
    assert first["labels"].tolist() == [1, 0]
    assert first["crowd"].tolist() == [False, True]
    assert second["boxes"].shape == (0, 4)
    assert samples.source.classes == ("dog", "cat")


def test_coco_numbers_categories_by_name_when_the_model_names_its_classes(tmp_path: Path) -> None:
    (batch,) = opened(tmp_path, stored(), ("cat", "dog")).batches(2)
    assert batch.labels is not None
    assert batch.labels[0]["labels"].tolist() == [0, 1]


def test_detections_in_a_crowd_count_for_nothing_as_in_coco() -> None:
    precision = BoxPrecision(classes=1)
    found = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    truth = torch.tensor([[0.0, 0, 10, 10], [40, 40, 90, 90]])
    labels = {"boxes": truth, "labels": torch.tensor([0, 0]), "crowd": torch.tensor([False, True])}
    scores = torch.tensor([0.5, 0.9])
    precision.update([{"boxes": found, "scores": scores, "labels": torch.tensor([0, 0])}], [labels])
    assert precision.compute()["map"] == pytest.approx(1.0)
    single = BoxPrecision(classes=1)
    single.update(
        [{"boxes": found, "scores": scores, "labels": torch.tensor([0, 0])}], [{**labels, "crowd": torch.zeros(2)}]
    )
    assert single.compute()["map"] < 0.5


def changed(key: str, position: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[key][position].update(values)


def without(key: str, position: int, field: str) -> Callable[[dict[str, Any]], None]:
    def spoil(content: dict[str, Any]) -> None:
        del content[key][position][field]

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            changed("annotations", 0, bbox=[6, 0, 4, 2]),
            r"annotations\[0\] \(id 1\).bbox: .* reaches beyond its image a.png",
        ),
        (changed("annotations", 0, bbox=[9, 0, 1, 2]), "is outside its image a.png of 8 x 4"),
        (changed("annotations", 1, bbox=[6, 0, -4, 2]), r"\(id 2\).bbox: .* is empty or inverted"),
        (changed("annotations", 1, bbox=[6, 0, 0, 2]), "is empty or inverted"),
        (changed("annotations", 0, bbox=[6, 0, 1]), r"annotations\[0\].bbox"),
        (changed("annotations", 0, category_id=5), "category_id: has category 5, which is not among the categories"),
        (changed("annotations", 0, image_id=8), "image_id: belongs to image 8, which is not among the images"),
        (changed("annotations", 0, id=2), "annotations: id 2 is there 2 times"),
        (changed("images", 0, id=3), "images: id 3 is there 2 times"),
        (changed("images", 0, file_name="sub/b.png"), "file_name 'sub/b.png' is there 2 times"),
        (changed("categories", 0, name="dog"), "categories: name 'dog' is there 2 times"),
        (
            changed("images", 1, width=4, height=8),
            r"images \(id 3\): .*b.png: is 8 x 4 pixels, and the file says 4 x 8",
        ),
        (changed("images", 1, file_name="c.png"), r"images \(id 3\): .*c.png: no such file"),
        (without("images", 1, "width"), r"images\[1\].width: field required"),
        (without("annotations", 0, "bbox"), r"annotations\[0\] \(id 1\).bbox: is missing"),
        (lambda content: content.pop("categories"), "categories: field required"),
        (lambda content: content["categories"].clear(), "names no categories"),
    ],
)
def test_wrong_coco_files_are_one_error_that_names_the_entry(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], message: str
) -> None:
    content = stored()
    spoil(content)
    with pytest.raises(DataError, match=message):
        _ = opened(tmp_path, content).sha256


@pytest.mark.parametrize("content", ["{", "[]", "\x00", '{"images": 1e999}', "[" * 100_000])
def test_file_that_is_no_coco_file_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"boxes\.json"):
        opened(tmp_path, content)


def test_category_that_the_model_does_not_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"category_id: has the category 'dog'; did you mean 'dogs'"):
        opened(tmp_path, stored(), ("cat", "dogs"))


def test_unreadable_image_names_the_entry(tmp_path: Path) -> None:
    samples = opened(tmp_path, stored())
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"boxes.json: images \(id 7\): .*a.png: is no image of a known format"):
        _ = samples.sha256


def objects(*annotations: dict[str, Any], categories: tuple[str, ...] = ("cat", "dog")) -> dict[str, Any]:
    """Annotations of the first of two images of 8 x 4 pixels."""
    common = {"image_id": 7, "category_id": 1}
    return {
        **stored(),
        "annotations": [{**common, "id": number, **each} for number, each in enumerate(annotations)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(categories, start=1)],
    }


def labels_of(folder: Path, content: Any, of: str, classes: tuple[str, ...] = (), **preprocessing: Any) -> Any:
    write_files(folder, content)
    source = DataSource(folder=folder, coco=folder / "boxes.json", labels=of)
    samples = open_samples(source, COLOUR, Preprocessing(**preprocessing), name="test", classes=classes)
    samples = replace(samples, inputs=(TensorSpec(name="image", shape=(3, 4, 4) if preprocessing else (3, 4, 8)),))
    form = keypoints(2) if of == "keypoints" else mask(3, 4, samples.inputs[0].shape[2])
    (batch,) = replace(samples, form=form).batches(2)
    return batch.labels


LEFT = {"segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}
DOT = {"segmentation": [[1, 1, 2, 1, 2, 2, 1, 2]], "category_id": 2}


def test_outlines_become_masks_with_small_objects_on_large_ones(tmp_path: Path) -> None:
    first, second = labels_of(tmp_path, objects(DOT, LEFT), "masks")
    expected = np.zeros((4, 8), int)
    expected[:, :4] = 1
    expected[1, 1] = 2  # background is 0, cat 1 and dog 2
    assert first.tolist() == expected.tolist()
    assert not second.any()
    half, _ = labels_of(tmp_path, objects(LEFT), "masks", resize=(4, 4))
    assert half.tolist() == [[1, 1, 0, 0]] * 4


def test_pixels_of_no_object_count_for_nothing_when_the_model_has_no_background(tmp_path: Path) -> None:
    first, _ = labels_of(tmp_path, objects(LEFT), "masks", ("dog", "cat"))
    assert first.tolist() == [[1] * 4 + [255] * 4] * 4
    first, _ = labels_of(tmp_path, objects(LEFT), "masks", ("cat", "dog", "background"))
    assert first.tolist() == [[0] * 4 + [2] * 4] * 4


def test_masks_may_be_runs(tmp_path: Path) -> None:
    """Column by column: 4 pixels of the first are outside, the 8 of the next two columns inside."""
    runs = {"size": [4, 8], "counts": [4, 8, 20]}
    inside = np.zeros((4, 8), np.uint8, order="F")
    inside[:, 1:3] = 1
    coded = {"size": [4, 8], "counts": coco_masks.encode(inside)["counts"].decode()}
    for each in (runs, coded):
        first, _ = labels_of(tmp_path, objects({"segmentation": each, "iscrowd": 1}), "masks")
        assert first.tolist() == inside.tolist()


def test_keypoints_of_one_object_follow_the_image(tmp_path: Path) -> None:
    first, second = labels_of(tmp_path, objects({"keypoints": [0.5, 0, 2, 6.5, 3, 0]}), "keypoints", resize=(4, 4))
    assert first.tolist() == [[0, 0, 1], [3, 3, 0]]  # half as wide; the second is not labelled
    assert second[:, 2].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("of", "annotation", "message"),
    [
        ("masks", {}, r"annotations\[0\] \(id 0\).segmentation: has no outline"),
        ("masks", {"segmentation": [[0, 0, 1, 1]]}, "polygon 0 has 4 numbers, not x and y of three points"),
        ("masks", {"segmentation": [[0, 0, 1, 1, 2, 2, 3]]}, "polygon 0 has 7 numbers"),
        ("masks", {"segmentation": [[0, 0, 1e9, 1, 2, 2]]}, "polygon 0 reaches beyond its image a.png of 8 x 4"),
        ("masks", {"segmentation": {"size": [8, 4], "counts": [32]}}, "is of a mask of 4 x 8, and its image is 8 x 4"),
        ("masks", {"segmentation": {"size": [4, 8], "counts": [30]}}, "has runs of 30 pixels, and its image has 32"),
        ("masks", {"segmentation": {"size": [4, 8], "counts": [-1, 33]}}, "has runs of 32 pixels"),
        ("masks", {"segmentation": {"size": [4, 8], "counts": "zzzzzzz"}}, "segmentation: cannot be read"),
        ("masks", {"segmentation": "all"}, r"annotations\[0\].segmentation: input should be"),
        ("keypoints", {"keypoints": [1, 1, 2, 3]}, "keypoints: has 4 numbers, not three a keypoint"),
        ("keypoints", {"keypoints": [1, 1, 5]}, "keypoints: has a visibility other than 0, 1 and 2"),
        ("keypoints", {}, "has no keypoints"),
    ],
)
def test_objects_that_lack_what_is_asked_for_are_refused(
    of: str, annotation: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        labels_of(tmp_path, objects(annotation), of)


def test_images_of_several_objects_with_keypoints_are_refused(tmp_path: Path) -> None:
    person = {"keypoints": [0, 0, 2, 6, 3, 0]}
    with pytest.raises(DataError, match=r"images \(id 7\): has 2 objects with keypoints"):
        labels_of(tmp_path, objects(person, person), "keypoints")
    first, _ = labels_of(tmp_path, objects(person, {**person, "iscrowd": 1}), "keypoints")
    assert first[0].tolist() == [0, 0, 1]
