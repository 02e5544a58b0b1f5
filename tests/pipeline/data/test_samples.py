from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import TensorDataset

from pipeline.core import DataError, Preprocessing, TensorSpec
from pipeline.data.samples import SampleSet, from_dataset, open_samples
from pipeline.recipe import DataSource

GREY = (TensorSpec(name="image", shape=(1, 4, 4)),)
COLOUR = (TensorSpec(name="image", shape=(3, 4, 4)),)


def npz(folder: Path, **arrays: np.ndarray) -> DataSource:
    np.savez(folder / "set.npz", **arrays)
    return DataSource(npz=folder / "set.npz")


def open_set(source: DataSource, inputs: tuple[TensorSpec, ...] = GREY, **preprocessing: object) -> SampleSet:
    return open_samples(source, inputs, Preprocessing(**preprocessing), name="test")


def test_batches_apply_scale_mean_and_std_when_samples_are_bytes(tmp_path: Path) -> None:
    images = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    samples = open_set(npz(tmp_path, images=images, labels=np.array([1, 0])), scale=0.5, mean=(2.0,), std=(4.0,))
    (batch,) = samples.batches(8)
    expected = (images.astype(np.float32) * 0.5 - 2.0) / 4.0
    np.testing.assert_allclose(batch.inputs[0].numpy()[:, 0], expected, rtol=1e-6)
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 0]


def test_batches_transpose_when_images_are_stored_channels_last(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((2, 4, 4, 3), dtype=np.float32)
    samples = open_set(npz(tmp_path, images=images), COLOUR, mean=(0.1, 0.2, 0.3))
    (batch,) = samples.batches(8)
    expected = images.transpose(0, 3, 1, 2) - np.array([0.1, 0.2, 0.3], np.float32).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(batch.inputs[0].numpy(), expected, atol=1e-6)
    assert batch.labels is None
    assert not samples.labelled


def test_crop_takes_the_centre_when_samples_are_larger(tmp_path: Path) -> None:
    images = np.arange(36, dtype=np.uint8).reshape(1, 6, 6)
    (batch,) = open_set(npz(tmp_path, images=images), crop=(4, 4)).batches(1)
    np.testing.assert_array_equal(batch.inputs[0][0, 0].numpy(), images[0, 1:5, 1:5])


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


def test_from_dataset_yields_inputs_and_labels_when_given_a_torch_dataset() -> None:
    images, labels = torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 2, 3, 4])
    batches = list(from_dataset(TensorDataset(images, labels), GREY).batches(2))
    assert [len(batch.inputs[0]) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([batch.inputs[0] for batch in batches]), images)


def test_factory_is_imported_from_the_working_directory_when_the_recipe_names_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_data.py").write_text(
        "import torch\n"
        "def numbers(count):\n"
        "    images = torch.arange(count * 16.0).reshape(count, 1, 4, 4)\n"
        "    return torch.utils.data.TensorDataset(images, torch.arange(count))\n"
    )
    monkeypatch.chdir(tmp_path)
    samples = open_set(DataSource(factory="my_data:numbers", kwargs={"count": 3}), scale=2.0)
    (batch,) = samples.batches(3)
    assert batch.inputs[0].flatten().tolist() == [2.0 * value for value in range(48)]
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 2]


def test_integers_pass_unchanged_when_preprocessing_is_for_images(tmp_path: Path) -> None:
    tokens = np.array([[3, 1, 2]])
    source = npz(tmp_path, images=tokens)
    samples = open_set(source, (TensorSpec(name="tokens", shape=(3,), dtype="int64"),), scale=0.5)
    (batch,) = samples.batches(1)
    assert batch.inputs[0].tolist() == [[3, 1, 2]]


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


@pytest.mark.parametrize("labels", [[0, 10], [0, -1]])
def test_check_labels_names_the_sample_when_one_is_out_of_range(tmp_path: Path, labels: list[int]) -> None:
    samples = open_set(npz(tmp_path, images=np.zeros((2, 4, 4)), labels=np.array(labels)))
    with pytest.raises(DataError, match=f"sample 1 has label {labels[1]}, but the model has 10 classes"):
        samples.check_labels(10)


def test_take_keeps_every_class_when_the_set_is_sorted_by_class(tmp_path: Path) -> None:
    samples = open_set(npz(tmp_path, images=np.zeros((100, 4, 4)), labels=np.repeat(np.arange(10), 10)))
    (batch,) = samples.take(10).batches(10)
    assert batch.labels is not None
    assert sorted(set(batch.labels.tolist())) == list(range(10))


@given(count=st.integers(2, 60), held_out=st.integers(1, 60), seed=st.integers(0, 9))
def test_split_divides_without_overlap_or_loss_when_any_sizes_are_asked(count: int, held_out: int, seed: int) -> None:
    samples = from_dataset(TensorDataset(torch.zeros(count, 1, 4, 4)), GREY)
    kept, held = samples.split(held_out, seed)
    assert sorted(kept.indices + held.indices) == list(range(count))
    assert len(held) == min(held_out, count // 2)


def test_sha256_changes_when_a_sample_a_label_or_the_preprocessing_changes(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8)
    variants = []
    for change in ("none", "image", "label", "preprocessing"):
        folder = tmp_path / change
        folder.mkdir()
        altered, relabelled = images.copy(), labels.copy()
        altered[1, 2, 3] = change == "image"
        relabelled[2] = change == "label"
        source = npz(folder, images=altered, labels=relabelled)
        variants.append(open_set(source, mean=(float(change == "preprocessing"),)).sha256)
    assert len(set(variants)) == 4


def test_loader_repeats_its_order_when_the_seed_is_the_same(tmp_path: Path) -> None:
    samples = open_set(npz(tmp_path, images=np.zeros((50, 4, 4)), labels=np.arange(50)))

    def order(seed: int) -> list[int]:
        return [label for batch in samples.loader(7, shuffle_seed=seed) for label in batch.labels.tolist()]  # type: ignore[union-attr]

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == list(range(50))
