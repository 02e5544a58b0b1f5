import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.core import DataError, Preprocessing
from pipeline.data.open import open_samples
from pipeline.data.source import DataSource
from tests.pipeline.data.opening import COLOUR, GREY, open_set


def test_folder_numbers_classes_in_sorted_order_when_images_differ_in_size(tmp_path: Path) -> None:
    for name, size, value in (("dog", (9, 7), 200), ("cat", (5, 8), 40)):
        (tmp_path / name).mkdir()
        Image.new("RGB", size, (value, value, value)).save(tmp_path / name / "1.png")
    samples = open_set(DataSource(folder=tmp_path), COLOUR, resize=(4, 4))
    (batch,) = samples.batches(2)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1]
    assert batch.inputs[0][:, 0, 0, 0].tolist() == pytest.approx([40, 200])


def test_folder_names_the_file_when_it_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        open_set(DataSource(folder=tmp_path), COLOUR)


def test_batch_of_large_images_takes_the_memory_of_one(tmp_path: Path) -> None:
    for name in "abcdefgh":
        (tmp_path / name).mkdir()
        Image.new("RGB", (1000, 1000), (50, 60, 70)).save(tmp_path / name / "1.png")
    samples = open_set(DataSource(folder=tmp_path), COLOUR, resize=(4, 4))
    tracemalloc.start()
    (batch,) = samples.batches(8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(batch.inputs[0]) == 8
    assert peak < 3 * 3_000_000  # an image has 3 MB, and is copied once


def test_folder_passes_over_hidden_entries(tmp_path: Path) -> None:
    for name in (".ipynb_checkpoints/1.png", "cat/1.png", "cat/._1.png", "dog/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    samples = open_set(DataSource(folder=tmp_path), COLOUR)
    (batch,) = samples.batches(4)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1]
    assert samples.source.notes == (f"{tmp_path}: passed over 2 hidden entries, such as .ipynb_checkpoints",)


def folder_of(root: Path, *names: str) -> DataSource:
    """An image at each of these paths, each darker than the one before it."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (200 - number,) * 3).save(root / name)
    return DataSource(folder=root)


def read(source: DataSource, classes: tuple[str, ...] = ()) -> tuple[list[float], list[int]]:
    """The first value of each image, and the labels."""
    (batch,) = open_samples(source, COLOUR, Preprocessing(), name="test", classes=classes).batches(99)
    labels = [] if batch.labels is None else batch.labels.tolist()
    return batch.inputs[0][:, 0, 0, 0].tolist(), labels


def test_labels_are_those_of_the_known_classes_when_a_folder_is_missing(tmp_path: Path) -> None:
    source = folder_of(tmp_path, "cow/1.png", "dog/1.png")
    assert read(source) == ([200, 199], [0, 1])
    assert read(source, ("dog", "cat", "cow")) == ([200, 199], [2, 0])


def test_images_are_read_at_any_depth_when_classes_are_known(tmp_path: Path) -> None:
    source = folder_of(tmp_path, "cow/1.webp", "cow/2019/may/2.tif", "dog/1.png", "dog/.thumbnails/1.png")
    assert read(source)[1] == [0, 0, 1]
    assert read(folder_of(tmp_path / "deep", "cow/a/1.png", "dog/a/1.png"), ("dog", "cow"))[1] == [1, 0]


def test_every_image_is_a_sample_when_labels_are_null(tmp_path: Path) -> None:
    folder_of(tmp_path, "1.png", "more/2.png", "more/3.png", ".git/4.png")
    assert read(DataSource(folder=tmp_path, labels=None)) == ([200, 199, 198], [])


@pytest.mark.parametrize("exif", [True, False])
def test_images_are_turned_unless_the_preprocessing_says_no(exif: bool, tmp_path: Path) -> None:
    stored = np.arange(16, dtype=np.uint8).reshape(4, 4)
    orientation = Image.Exif()
    orientation[0x0112] = 3  # upside down
    (tmp_path / "cat").mkdir()
    Image.fromarray(stored).save(tmp_path / "cat/1.png", exif=orientation)
    (batch,) = open_set(DataSource(folder=tmp_path), GREY, exif=exif).batches(1)
    np.testing.assert_array_equal(batch.inputs[0][0, 0], stored[::-1, ::-1] if exif else stored)


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        (("cat/1.png", "cats/1.png"), ("cat", "dog"), "class folder 'cats' is none of the model's classes; did you"),
        (("cat/1.png", "2.png"), (), r"2\.png: lies beside the class folders"),
        (("train/cat/1.png", "test/cat/1.png"), (), "class folder 'test' holds folders, such as 'cat', and no image"),
    ],
)
def test_folder_whose_classes_cannot_be_meant_is_refused(
    names: tuple[str, ...], classes: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        read(folder_of(tmp_path, *names), classes)


@pytest.mark.parametrize("name", ["cat/1.ppm", "cat/deep/1.HEIC", "cat/1.jp2"])
def test_image_of_a_format_that_is_not_read_is_refused_by_name(name: str, tmp_path: Path) -> None:
    source = folder_of(tmp_path, "cat/0.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"P6 1 1 255 abc")
    with pytest.raises(DataError, match=f"{Path(name).name}: is a .* image, and only .bmp, .gif"):
        read(source)
    (tmp_path / name).rename(tmp_path / "cat/notes.txt")
    samples = open_set(source, COLOUR)
    assert samples.source.notes == (f"{tmp_path}: passed over 1 entries of other kinds, such as cat/notes.txt",)
