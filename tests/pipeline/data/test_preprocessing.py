from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core import Preprocessing, TensorSpec
from pipeline.data.preprocessing import denormalise, normalise
from tests.pipeline.data.opening import COLOUR, npz, open_set


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


def test_one_channel_stored_last_has_the_strides_of_any_other_image(tmp_path: Path) -> None:
    (batch,) = open_set(npz(tmp_path, images=np.zeros((2, 4, 4, 1), np.uint8))).batches(8)
    assert batch.inputs[0].stride() == torch.empty(2, 1, 4, 4).stride()  # else view fails behind a convolution


def test_crop_takes_the_centre_when_samples_are_larger(tmp_path: Path) -> None:
    images = np.arange(36, dtype=np.uint8).reshape(1, 6, 6)
    (batch,) = open_set(npz(tmp_path, images=images), crop=(4, 4)).batches(1)
    np.testing.assert_array_equal(batch.inputs[0][0, 0].numpy(), images[0, 1:5, 1:5])


def test_integers_pass_unchanged_when_preprocessing_is_for_images(tmp_path: Path) -> None:
    tokens = np.array([[3, 1, 2]])
    source = npz(tmp_path, images=tokens)
    samples = open_set(source, (TensorSpec(name="tokens", shape=(3,), dtype="int64"),), scale=0.5)
    (batch,) = samples.batches(1)
    assert batch.inputs[0].tolist() == [[3, 1, 2]]


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(),
        Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        Preprocessing(scale=2.0, mean=(3.0,)),
        Preprocessing(std=(0.5, 2.0, 4.0)),
    ],
    ids=["nothing", "all three", "one mean", "no mean"],
)
def test_denormalise_restores_every_pixel_when_values_were_normalised(preprocessing: Preprocessing) -> None:
    levels = torch.arange(256.0).repeat(1, 3, 1, 1)
    torch.testing.assert_close(denormalise(normalise(levels, preprocessing), preprocessing), levels, rtol=0, atol=1e-3)
