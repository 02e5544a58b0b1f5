from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from pipeline.core import DataError, Preprocessing, TensorSpec
from pipeline.data.labels import class_indices
from pipeline.data.open import from_dataset
from tests.pipeline.data.opening import GREY, npz, open_set


@pytest.mark.parametrize("labels", [[0, 10], [0, -1]])
def test_check_labels_names_the_sample_when_one_is_out_of_range(tmp_path: Path, labels: list[int]) -> None:
    samples = open_set(npz(tmp_path, images=np.zeros((2, 4, 4)), labels=np.array(labels)))
    with pytest.raises(DataError, match=f"labels: sample 1 has label {labels[1]}, but the model has 10 classes"):
        _ = replace(samples, form=class_indices(10)).sha256


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


@pytest.mark.parametrize(
    ("dtype", "stored", "problem"),
    [
        ("int64", np.array([[1.5, 2.0]]), "not all of them are int64 values"),
        ("int8", np.array([[1, 300]]), "not all of them are int8 values"),
        ("uint8", np.array([[-1, 3]]), "not all of them are uint8 values"),
        ("bool", np.array([[0, 255]]), "not all of them are bool values"),
        ("float32", np.array([["a", "b"]]), "not numbers of one size"),
    ],
)
def test_stored_values_that_the_input_cannot_hold_are_refused(dtype: str, stored: np.ndarray, problem: str) -> None:
    inputs = (TensorSpec.model_validate({"name": "x", "shape": (2,), "dtype": dtype}),)
    with pytest.raises(DataError, match=problem):
        next(from_dataset([(row,) for row in stored], inputs).batches(1))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_floats_of_any_precision_arrive_as_float32(dtype: str) -> None:
    inputs = (TensorSpec.model_validate({"name": "x", "shape": (2,), "dtype": dtype}),)
    stored = [(torch.tensor([0.5, 2.0], dtype=torch.bfloat16, requires_grad=True),)]
    (batch,) = from_dataset(stored, inputs).batches(1)
    assert batch.inputs[0].dtype == torch.float32
    assert batch.inputs[0].tolist() == [[0.5, 2.0]]


def test_one_number_per_sample_is_scaled_and_checked_like_any_other(tmp_path: Path) -> None:
    scalar = (TensorSpec(name="t", shape=()),)
    samples = open_set(npz(tmp_path, images=np.array([3.0, 5.0])), scalar, scale=2.0, mean=(1.0,), std=(0.5,))
    (batch,) = samples.batches(2)
    assert batch.inputs[0].tolist() == [10.0, 18.0]
    with pytest.raises(DataError, match="sample 1 of 't' holds NaN"):
        next(open_set(npz(tmp_path, images=np.array([3.0, np.nan])), scalar).batches(2))


def test_constants_for_other_channels_than_the_input_has_are_refused(tmp_path: Path) -> None:
    source = npz(tmp_path, images=np.zeros((2, 4, 4)))
    with pytest.raises(DataError, match="mean or std has 2 numbers, and an input has 1 channels"):
        next(open_set(source, **Preprocessing(mean=(0.1, 0.2)).model_dump(exclude_defaults=True)).batches(1))


def test_samples_of_different_sizes_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="list: gives samples of different sizes"):
        next(from_dataset([torch.zeros(2), torch.zeros(3)], (TensorSpec(name="x", shape=(2,)),)).batches(2))
