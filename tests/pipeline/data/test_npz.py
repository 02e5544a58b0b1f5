import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core import DataError
from pipeline.data.archive import stored_bytes
from pipeline.data.source import DataSource
from tests.pipeline.data.opening import GREY, npz, open_set


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        pytest.param({"pictures": np.zeros((2, 4, 4))}, "has no array 'images'", id="other array names"),
        pytest.param({"images": np.zeros((0, 4, 4))}, "holds no samples", id="empty"),
        pytest.param({"images": np.zeros((2, 4, 4)), "labels": np.zeros(3)}, "different lengths", id="lengths"),
        pytest.param({"images": np.zeros((2, 5, 4))}, r"shape \[1, 5, 4\] after preprocessing", id="shape"),
        pytest.param({"images": np.full((2, 4, 4), np.nan)}, "sample 0 of 'image' holds NaN", id="NaN"),
        pytest.param({"images": np.array([[[1.0]], [[np.inf]]]).repeat(4, 1).repeat(4, 2)}, "sample 1", id="infinity"),
    ],
)
def test_open_samples_names_the_problem_when_the_archive_is_wrong(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _ = open_set(npz(tmp_path, **arrays)).sha256
    assert "set.npz" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken"])
def test_open_samples_refuses_when_the_file_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(DataError, match="not a readable npz"):
        open_set(DataSource(npz=tmp_path / "set.npz"))


def test_open_samples_refuses_pickles_when_an_archive_holds_objects(tmp_path: Path) -> None:
    source = npz(tmp_path, images=np.array([{"any": "object"}], dtype=object))
    with pytest.raises(DataError, match="not a readable npz"):
        open_set(source)


@pytest.mark.parametrize("dtype", [">f8", ">i2", np.longdouble, np.uint16], ids=str)
def test_open_samples_reads_numbers_of_any_form(tmp_path: Path, dtype: Any) -> None:
    stored = (np.arange(32) * 1.0).reshape(2, 1, 4, 4).astype(dtype)
    np.savez(tmp_path / "set.npz", images=stored)
    samples = open_set(DataSource(npz=tmp_path / "set.npz"), GREY)
    (batch,) = samples.batches(2)
    assert batch.inputs[0].flatten().tolist() == list(range(32))


def test_open_samples_refuses_when_an_array_states_more_than_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=np.zeros((2, 1, 4, 4), np.uint8))
    with zipfile.ZipFile(tmp_path / "set.npz") as archive:
        content = archive.read("images.npy")
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:  # 64 TiB, which NumPy would ask for
        archive.writestr("images.npy", content.replace(b"(2, 1, 4, 4), }" + b" " * 12, b"(1099511627776, 1, 8, 8), }"))
    with pytest.raises(DataError, match=r"states \[1099511627776, 1, 8, 8\] of uint8, which is more than it holds"):
        open_set(DataSource(npz=tmp_path / "set.npz"))


def test_stored_bytes_are_those_of_the_named_arrays(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "set.npz", images=np.zeros(10_000, np.uint8), others=np.zeros(10_000, np.uint8))
    assert stored_bytes(tmp_path / "set.npz", ["images", "labels"]) == 10_000 + 128  # NumPy's header
    assert stored_bytes(tmp_path / "set.npz") == 20_256
    assert stored_bytes(tmp_path / "none.npz") == 0
