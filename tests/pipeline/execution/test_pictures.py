"""The report's pictures of samples: the right images, with what each model says on top."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.core import Preprocessing, TensorSpec
from pipeline.data.npz import NpzSource
from pipeline.data.open import from_source
from pipeline.execution.pictures import shown_samples
from pipeline.models.interface import checked_model
from pipeline.tasks.lookup import built_in, for_task
from pipeline.tasks.task import Example

PREPROCESSING = Preprocessing(scale=1 / 255, mean=(0.5,), std=(0.5,))


class Threshold(nn.Module):
    """Class 1 where a pixel is bright."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([-image, image], 1)


def decoded(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def test_samples_show_the_stored_image_the_label_and_the_originals_mask(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 6)).astype(np.uint8)
    masks = (images > 100).astype(np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=masks)
    specs = (TensorSpec(name="image", shape=(1, 4, 6)),)
    samples = from_source(NpzSource(tmp_path / "set.npz", ("images",), "labels"), specs, PREPROCESSING, name="set")
    model = checked_model(Threshold(), specs, (), (), where="threshold")
    inputs = (torch.zeros(2, 1, 4, 6),)
    task = built_in("segmentation", Example(inputs=inputs, outputs=(Threshold()(*inputs),)))
    shown = shown_samples(model, [], for_task(samples, task), task)
    assert [sample.index for sample in shown] == [0, 2, 3, 5, 6, 8]  # six of nine, evenly spaced
    for sample in shown:
        assert (sample.width, sample.height) == (6, 4)
        np.testing.assert_array_equal(decoded(sample.image), images[sample.index])
        views = {view.title: view for view in sample.views}
        assert list(views) == ["label", "original, FP32"]
        label, found = (decoded(views[title].overlay or "")[..., 3] > 0 for title in views)
        np.testing.assert_array_equal(label, images[sample.index] > 100)
        np.testing.assert_array_equal(found, images[sample.index] > 127)
