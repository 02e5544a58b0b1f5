import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.core import DataError, Preprocessing
from pipeline.data.labels import boxes
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


def opened(folder: Path, content: Any, classes: tuple[str, ...] = (), *, write: bool = True) -> SampleSet:
    if write:
        (folder / "sub").mkdir(exist_ok=True)
        for name in ("a.png", "sub/b.png"):
            Image.new("RGB", (8, 4)).save(folder / name)
    (folder / "boxes.json").write_text(content if isinstance(content, str) else json.dumps(content))
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
        (without("annotations", 0, "bbox"), r"annotations\[0\].bbox: field required"),
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
