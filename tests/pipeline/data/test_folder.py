import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from pipeline.core import DataError
from pipeline.data.source import DataSource
from tests.pipeline.data.opening import COLOUR, open_set


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
