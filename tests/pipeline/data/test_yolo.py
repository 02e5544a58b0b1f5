from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.core import DataError, Preprocessing
from pipeline.data.labels import boxes
from pipeline.data.open import open_samples
from pipeline.data.samples import SampleSet
from pipeline.data.source import DataSource
from tests.pipeline.data.opening import COLOUR

BOXES = "1 0.5 0.25 0.5 0.5\n\n0 0.125 0.5 0.25 1\n"
DATA_YAML = "path: .\ntrain: images\nval: images\nnames: {0: cat, 1: dog}\n"


def write_files(folder: Path, text: str = BOXES) -> None:
    """Two images of 8 x 4 pixels, one in a subfolder; the file of one is empty."""
    for name in ("a", "sub/b"):
        for kind in ("images", "labels"):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 4)).save(folder / f"images/{name}.jpg")
    (folder / "labels/a.txt").write_text(text)
    (folder / "labels/sub/b.txt").write_text("")


def opened(folder: Path, classes: tuple[str, ...] = (), labels: str = "labels") -> SampleSet:
    source = DataSource(folder=folder / "images", yolo=folder / labels)
    samples = open_samples(source, COLOUR, Preprocessing(resize=(4, 4)), name="test", classes=classes)
    return replace(samples, form=boxes(2, 4, 4))


def labels_of(samples: SampleSet) -> list[tuple[list[list[float]], list[int]]]:
    (batch,) = samples.batches(2)
    assert batch.labels is not None
    return [(label["boxes"].tolist(), label["labels"].tolist()) for label in batch.labels]


# x from 2 to 6 and from 0 to 2, y from 0 to 2 and from 0 to 4, in 8 x 4 pixels, which become half as wide
CORNERS = [[1, 0, 3, 2], [0, 0, 1, 4]]


def test_yolo_gives_corners_in_the_models_input_and_images_without_objects(tmp_path: Path) -> None:
    write_files(tmp_path)
    samples = opened(tmp_path)
    assert labels_of(samples) == [(CORNERS, [1, 0]), ([], [])]
    assert samples.source.classes == ()
    assert samples.source.notes == ()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("labels/classes.txt", "cat\ndog\n"),
        ("labels/obj.names", "cat\ndog\n"),
        ("data.yaml", DATA_YAML),
        ("coco128.yml", DATA_YAML.replace("{0: cat, 1: dog}", "\n- cat\n- dog")),
    ],
)
def test_names_beside_the_labels_say_which_class_of_the_model_is_meant(tmp_path: Path, file: str, text: str) -> None:
    write_files(tmp_path)
    (tmp_path / file).write_text(text)
    assert opened(tmp_path).source.classes == ("cat", "dog")
    samples = opened(tmp_path, ("dog", "cat"))
    assert labels_of(samples)[0] == (CORNERS, [0, 1])
    assert samples.source.notes == (f"{tmp_path / 'labels'}: names of classes are those in {tmp_path / file}",)
    with pytest.raises(DataError, match=r"labels/a.txt: line 1: has the class 'dog'; did you mean 'dogs'"):
        opened(tmp_path, ("cat", "dogs"))


def test_yaml_files_of_something_else_name_no_classes(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "people.yaml").write_text("names: [Ada, Grace]")
    (tmp_path / "broken.yaml").write_text("names: [")
    assert opened(tmp_path).source.classes == ()


def test_labels_may_lie_beside_the_images_as_labelling_tools_leave_them(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "images/a.txt").write_text(BOXES)
    (tmp_path / "images/classes.txt").write_text("cat\ndog\n")
    (tmp_path / "images/predefined.json").write_text("{}")
    samples = opened(tmp_path, labels="images")
    assert labels_of(samples) == [(CORNERS, [1, 0]), ([], [])]
    notes = " ".join(samples.source.notes)
    assert "passed over 1 entries of other kinds, such as predefined.json" in notes
    assert "1 images have no label file and so no objects, such as sub/b" in notes


def test_equal_lines_count_once_and_rounded_boxes_are_cut(tmp_path: Path) -> None:
    line = "0 0.5 0.5 1.0 1.0\n"
    write_files(tmp_path, f"{line}{line}1 0.95 0.5 0.12 0.1\n")  # to 8.08 of 8 pixels
    (found, kinds), _ = labels_of(opened(tmp_path))
    np.testing.assert_allclose(found, [[0, 0, 4, 4], [3.56, 1.8, 4, 2.2]], rtol=1e-6)
    assert kinds == [0, 1]


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def written(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (written("labels/a.txt", "0 1 2 3\n"), "a.txt: line 1: holds '0 1 2 3', not five numbers"),
        (written("labels/a.txt", "cat .5 .5 .1 .1"), "line 1: holds 'cat .5 .5 .1 .1', not five numbers"),
        (written("labels/a.txt", "0,.5,.5,.1,.1"), "line 1: holds '0,.5,.5,.1,.1', not five numbers"),
        (written("labels/a.txt", "0 .5 .5 .1 .1 .9"), "the sixth may be a score\n  fix: give labels, not predictions"),
        (written("labels/a.txt", "0 .1 .1 .2 .1 .2 .2"), "it may be an outline or keypoints"),
        (written("labels/a.txt", "0 .5 .5 .1 .1\n0.5 .5 .5 .1 .1"), "line 2: has class 0.5, not an integer from 0"),
        (written("labels/a.txt", "-1 .5 .5 .1 .1"), "line 1: has class -1, not an integer"),
        (written("labels/a.txt", "0 nan .5 .1 .1"), "has a number that is not finite"),
        (written("labels/a.txt", "0 320 240 64 48"), "has 320, not a share of the image from 0 to 1"),
        (written("labels/a.txt", "0 -0.1 .5 .1 .1"), "has -0.1, not a share"),
        (written("labels/a.txt", "0 .5 .5 0 .1"), "is a box without width or height"),
        (written("labels/a.txt", "0 .8 .5 .8 .1"), r"reaches beyond its image: 3.2, 1.8 to 9.6, 2.2 of 8 x 4"),
        (written("labels/a.txt", "2 .5 .5 .1 .1"), "a.txt.labels: sample 0 has label 2, but the model has 2 classes"),
        (written("labels/classes.txt", "cat"), "a.txt: line 1: has class 1, and the classes are 0 to 0"),
        (written("labels/classes.txt", "cat\ncat"), "classes.txt: has the class 'cat' twice"),
        (written("data.yaml", "train: x\nnames: {1: cat, 2: dog}"), "names: numbers its classes 1, 2, not from 0"),
        (written("labels/c.txt", ""), r"labels/c.txt: has no image of its name in .*images"),
        (removed("images/a.jpg"), "labels/a.txt: has no image of its name"),
        (lambda folder: (folder / "labels/a.txt").write_bytes(b"\xff\xfe"), "a.txt: is not UTF-8 text"),
        (lambda folder: [file.unlink() for file in folder.glob("labels/**/*.txt")], "holds no label file"),
        (lambda folder: [file.unlink() for file in folder.glob("images/**/*.jpg")], "images: holds no image"),
    ],
)
def test_wrong_files_are_one_error_that_names_the_line(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    write_files(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message) as refused:
        list(opened(tmp_path).batches(2))
    assert "fix:" in str(refused.value)


def test_labels_must_be_a_folder(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "data.yaml").write_text(DATA_YAML)
    with pytest.raises(DataError, match=r"data.yaml: is a file, not a folder"):
        opened(tmp_path, labels="data.yaml")
