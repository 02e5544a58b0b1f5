"""What Hugging Face ``datasets`` saves, written by itself."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from pipeline.core import DataError, Preprocessing, TensorSpec
from pipeline.data.labels import ANY, LabelForm, boxes, class_indices, numbers
from pipeline.data.open import open_samples
from pipeline.data.places import MAY_BE_POSITIONS
from pipeline.data.samples import SampleSet
from pipeline.data.source import DataSource
from tests.pipeline.data.opening import GREY


def opened(
    path: Path, form: LabelForm = ANY, *, classes: Sequence[str] = (), specs: Any = GREY, **source: Any
) -> SampleSet:
    named = DataSource(huggingface=path, **{"inputs": ("image",), "labels": "label", **source})
    samples = open_samples(named, specs, Preprocessing(), name="test", classes=classes)
    return replace(samples, form=form)


def images(*levels: int) -> list[Image.Image]:
    return [Image.new("L", (4, 4), level) for level in levels]


def with_classes(levels: Sequence[int], labels: Sequence[int], names: list[str]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"image": images(*levels), "label": labels}, features=features)


def test_images_and_class_labels_are_read(tmp_path: Path) -> None:
    with_classes([1, 2, 3], [0, 1, 1], ["cat", "dog"]).save_to_disk(tmp_path / "set", num_shards=2)
    samples = opened(tmp_path / "set", class_indices(2))
    (batch,) = samples.batches(3)
    assert batch.inputs[0][:, 0, 3, 3].tolist() == [1, 2, 3]
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 1]
    assert samples.source.classes == ("cat", "dog")


def test_class_labels_are_numbered_by_name_when_the_model_names_its_classes(tmp_path: Path) -> None:
    with_classes([1, 2], [0, 1], ["cat", "dog"]).save_to_disk(tmp_path / "set")
    (batch,) = opened(tmp_path / "set", class_indices(3), classes=("dog", "bird", "cat")).batches(2)
    assert batch.labels is not None
    assert batch.labels.tolist() == [2, 0]
    with pytest.raises(DataError, match=r"row 0: label: 'cat' is not in model.classes"):
        _ = opened(tmp_path / "set", class_indices(3), classes=("dog", "bird")).sha256


def test_vectors_and_nested_boxes_are_read(tmp_path: Path) -> None:
    content = {
        "x": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],
        "y": [0.5, 1.5],
        "image": images(1, 2),
        "objects": [{"box": [[0, 0, 2, 2]], "kind": [1]}, {"box": [], "kind": []}],
    }
    datasets.Dataset.from_dict(content).save_to_disk(tmp_path / "set")
    vector = (TensorSpec(name="x", shape=(3,)),)
    form = numbers((), MAY_BE_POSITIONS)
    (batch,) = opened(tmp_path / "set", form, specs=vector, inputs=("x",), labels="y").batches(2)
    assert batch.inputs[0].tolist() == content["x"]
    assert batch.labels is not None
    assert batch.labels.tolist() == [0.5, 1.5]
    parts = {"boxes": "objects.box", "labels": "objects.kind"}
    (batch,) = opened(tmp_path / "set", boxes(2, 4, 4), labels=parts).batches(2)
    assert batch.labels is not None
    assert [label["labels"].tolist() for label in batch.labels] == [[1], []]


def test_classes_inside_lists_are_numbered_by_name_too(tmp_path: Path) -> None:
    kinds = datasets.List(datasets.ClassLabel(names=["cat", "dog"]))
    objects = {"box": datasets.List(datasets.List(datasets.Value("float32"))), "kind": kinds}
    features = datasets.Features({"image": datasets.Image(), "objects": objects})
    content = {"image": images(1), "objects": [{"box": [[0, 0, 2, 2], [1, 1, 3, 3]], "kind": [0, 1]}]}
    datasets.Dataset.from_dict(content, features=features).save_to_disk(tmp_path / "set")
    parts = {"boxes": "objects.box", "labels": "objects.kind"}
    samples = opened(tmp_path / "set", boxes(2, 4, 4), labels=parts, classes=("dog", "cat"))
    assert next(samples.batches(1)).labels[0]["labels"].tolist() == [1, 0]  # type: ignore[index]
    with pytest.raises(DataError, match=r"row 0: objects.kind: 'dog' is not in model.classes"):
        _ = opened(tmp_path / "set", boxes(2, 4, 4), labels=parts, classes=("bird", "cat")).sha256


def test_images_inside_other_columns_pass_the_same_door(tmp_path: Path) -> None:
    features = datasets.Features({"pair": {"image": datasets.Image()}, "label": datasets.Value("int64")})
    content = {"pair": [{"image": image} for image in images(7)], "label": [0]}
    datasets.Dataset.from_dict(content, features=features).save_to_disk(tmp_path / "set")
    source = opened(tmp_path / "set", inputs=("pair.image",)).source
    assert set(source.row(0)["pair"]["image"]) == {"bytes", "path"}  # type: ignore[attr-defined]  # of rows
    assert next(opened(tmp_path / "set", inputs=("pair.image",)).batches(1)).inputs[0].unique().tolist() == [7]


def test_arrays_of_a_fixed_shape_are_read(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Array2D((4, 4), "float32"), "label": datasets.Value("int64")})
    content = {"image": [np.eye(4).tolist()], "label": [0]}
    datasets.Dataset.from_dict(content, features=features).save_to_disk(tmp_path / "set")
    assert next(opened(tmp_path / "set").batches(1)).inputs[0][0, 0].tolist() == np.eye(4).tolist()


def test_split_names_one_of_several_sets(tmp_path: Path) -> None:
    one, other = with_classes([1], [0], ["cat"]), with_classes([2, 3], [0, 0], ["cat"])
    datasets.DatasetDict({"train": one, "test": other}).save_to_disk(tmp_path / "set")
    assert len(opened(tmp_path / "set", split="test")) == 2
    with pytest.raises(DataError, match="holds several data sets; there are train, test"):
        opened(tmp_path / "set")
    with pytest.raises(DataError, match="holds no data set 'tset'; did you mean 'test'"):
        opened(tmp_path / "set", split="tset")
    one.save_to_disk(tmp_path / "single")
    with pytest.raises(DataError, match="holds one data set, and no splits"):
        opened(tmp_path / "single", split="test")


def test_rows_stay_on_the_disk_until_they_are_read(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"image": np.zeros((4, 1, 4, 4)).tolist(), "label": [0] * 4})
    rows.save_to_disk(tmp_path / "set")
    source: Any = opened(tmp_path / "set").source
    assert source._rows.cache_files[0]["filename"].startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image": [None, None], "label": [0, 1]}, r"row 0: image: is empty"),
        ({"image": [[[1.0] * 4] * 4] * 2, "label": [0, 7]}, r"row 1: label: sample 1 has label 7"),
        ({"image": [[[1.0] * 4] * 4] * 2, "label": [0, None]}, r"row 1: label: is empty"),
        ({"image": ["hello", "you"], "label": [0, 1]}, r"row 0: image: 'hello' is no number"),
        ({"picture": [1, 2], "label": [0, 1]}, r"has no column 'image'"),
    ],
)
def test_wrong_rows_are_one_error_that_names_row_and_column(tmp_path: Path, content: Any, message: str) -> None:
    datasets.Dataset.from_dict(content).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=message):
        _ = opened(tmp_path / "set", class_indices(2)).sha256


def test_damaged_image_names_its_row(tmp_path: Path) -> None:
    content = {"image": [{"bytes": b"no image", "path": "a.png"}], "label": [0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(content, features=features).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=r"row 0: image: a.png: is no image of a known format"):
        _ = opened(tmp_path / "set", class_indices(2)).sha256


def test_other_folders_and_a_missing_package_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no such folder"):
        opened(tmp_path / "none")
    with pytest.raises(DataError, match=r"is no saved data set: .*\n  fix: .*save_to_disk"):
        opened(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r'needs the package datasets\n  fix: pip install "edgewright\[datasets\]"'):
        opened(tmp_path)
