from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.core import DataError
from pipeline.data.labels import mask
from pipeline.data.samples import SampleSet
from pipeline.data.source import DataSource
from tests.pipeline.data.opening import COLOUR, open_set

SQUARES = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 9, 9], [2, 2, 9, 9]], np.uint8)


def write(folder: Path) -> None:
    """Two colour images of 4 x 4, one in a subfolder, and their masks: one a palette image, one greyscale."""
    for name in ("images/a.jpg", "images/street/b.png", "masks/a.png", "masks/street/b.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (10, 20, 30)).save(folder / "images/a.jpg")
    Image.new("RGB", (4, 4), (40, 50, 60)).save(folder / "images/street/b.png")
    palette = Image.fromarray(SQUARES, "P")
    palette.putpalette([channel for value in range(256) for channel in (255 - value, 0, 0)])
    palette.save(folder / "masks/a.png")
    Image.fromarray(SQUARES.T.copy()).save(folder / "masks/street/b.png")


def opened(folder: Path, **preprocessing: object) -> SampleSet:
    source = DataSource(folder=folder / "images", masks=folder / "masks", ignore=(9,))
    return replace(open_set(source, COLOUR, **preprocessing), form=mask(3, 4, 4))


def test_masks_are_paired_by_name_and_hold_stored_values(tmp_path: Path) -> None:
    write(tmp_path)
    (batch,) = opened(tmp_path).batches(2)
    assert batch.labels is not None
    expected = np.where(SQUARES == 9, 255, SQUARES)
    assert batch.labels.tolist() == [expected.tolist(), expected.T.tolist()]
    assert batch.inputs[0][1, :, 0, 0].tolist() == [40, 50, 60]


def test_masks_are_resized_with_their_images_by_the_nearest_pixel(tmp_path: Path) -> None:
    write(tmp_path)
    (batch,) = opened(tmp_path, resize=(4, 4)).take(1).batches(1)
    Image.fromarray(SQUARES.repeat(2, 0).repeat(2, 1)).save(tmp_path / "masks/a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "images/a.jpg")
    (larger,) = opened(tmp_path, resize=(4, 4)).take(1).batches(1)
    assert batch.labels is not None
    assert larger.labels is not None
    assert larger.labels.tolist() == batch.labels.tolist()


def test_images_without_masks_are_no_labels_when_the_recipe_says_so(tmp_path: Path) -> None:
    write(tmp_path)
    source = DataSource(folder=tmp_path / "images", masks=tmp_path / "masks", labels=None)
    samples = open_set(source, COLOUR)
    assert not samples.labelled
    assert next(samples.batches(2)).labels is None


def saved(name: str, image: Image.Image) -> Callable[[Path], None]:
    return lambda folder: image.save(folder / name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(
            lambda folder: (folder / "masks/a.png").unlink(), r"images/a\.jpg: has no mask of its name", id="no mask"
        ),
        pytest.param(
            lambda folder: (folder / "images/a.jpg").unlink(), r"masks/a\.png: has no image of its name", id="no image"
        ),
        pytest.param(
            saved("masks/a.png", Image.new("L", (4, 3))),
            r"masks/a\.png: is 4 x 3 pixels, and its image .*a\.jpg is 4 x 4",
            id="other size",
        ),
        pytest.param(
            saved("masks/street/b.png", Image.new("L", (4, 4), 5)),
            r"masks/street/b\.png: sample 1 has the value 5 in its mask, but the model has 3 classes",
            id="value without a class",
        ),
        pytest.param(
            saved("masks/a.png", Image.new("RGB", (4, 4))), r"masks/a\.png: holds colours .*'RGB'", id="colours"
        ),
        pytest.param(
            saved("masks/a.jpg", Image.new("L", (4, 4))), r"masks/a\.png: has the name of .*a\.jpg", id="two masks"
        ),
        pytest.param(
            lambda folder: (folder / "masks/a.png").write_bytes(b"no image"), r"masks/a\.png: is no image", id="damaged"
        ),
        pytest.param(
            lambda folder: (folder / "images/a.jpg").write_bytes(b"no image"), r"a\.jpg: is no image", id="bad image"
        ),
    ],
)
def test_wrong_masks_are_one_error_that_names_the_file(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    write(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        _ = opened(tmp_path).sha256


def test_mask_of_a_lossy_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "masks/a.png").unlink()
    Image.new("L", (4, 4)).save(tmp_path / "masks/a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg: is a JPEG, which may change the values"):
        _ = opened(tmp_path).sha256


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        open_set(DataSource(folder=tmp_path / "empty", masks=tmp_path / "masks"), COLOUR)
    with pytest.raises(DataError, match="no such folder"):
        open_set(DataSource(folder=tmp_path / "images", masks=tmp_path / "mask"), COLOUR)


def test_image_of_another_size_is_named_when_nothing_resizes_it(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("images/street/b.png", "masks/street/b.png"):
        Image.new("RGB" if name.startswith("images") else "L", (5, 4)).save(tmp_path / name)
    with pytest.raises(DataError, match=r"images/street/b\.png: samples of 'image' have shape \[3, 4, 5\]"):
        _ = opened(tmp_path).sha256
