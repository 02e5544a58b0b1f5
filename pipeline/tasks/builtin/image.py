"""Image to image, such as denoising and super-resolution: the first output is an image, and so is a label."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanMetric, Metric
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.image import StructuralSimilarityIndexMeasure

from pipeline.core import MetricInfo
from pipeline.data.labels import numbers
from pipeline.data.places import OTHER_IMAGE
from pipeline.tasks.losses import relative_errors
from pipeline.tasks.pictures import View, pixels
from pipeline.tasks.task import Example, MetricSpec, Task, Tensors, misfit

SSIM_WINDOW = 11
BEYOND = 2.0
"""How many times the largest value of images a label may be, before it is one of another range."""
MOST_DB = 100.0
"""The PSNR of an image that is exactly right, in place of infinity."""


def task(example: Example) -> Task:
    """PSNR and SSIM, averaged over images, whose values reach from 0 to 1 or from 0 to 255.

    Where nothing says which, the original's outputs of a few samples do, and the report names it.
    """
    first = example.first
    if first.ndim != 4 or not first.is_floating_point():
        raise misfit("image needs images (N, C, H, W) as the first output", first)
    top = example.data_range or (1.0 if first.abs().max() < 2 else 255.0)
    seen = "" if example.data_range else ", as the original's outputs of a few samples are; task.data_range changes it"

    def decibels(metric: Metric, images: Tensor, labels: Tensor) -> None:
        found = peak_signal_noise_ratio(images, labels, (0.0, top), reduction="none", dim=(1, 2, 3))
        metric.update(found.clamp(max=MOST_DB))

    def label_loss(outputs: Tensors, labels: Tensor) -> Tensor:
        return functional.mse_loss(outputs[0] / top, labels / top)

    ssim = partial(StructuralSimilarityIndexMeasure, data_range=(0.0, top), sync_on_compute=False)
    metrics = [
        MetricSpec(
            info=MetricInfo(name="psnr", title="PSNR", unit="dB"),
            make=partial(MeanMetric, sync_on_compute=False),
            update=decibels,
        ),
    ]
    if min(first.shape[2:]) >= SSIM_WINDOW:
        metrics.append(MetricSpec(info=MetricInfo(name="ssim", title="SSIM", unit=""), make=ssim))
    return Task(
        name="image",
        labels=numbers(
            tuple(first.shape[1:]), replace(OTHER_IMAGE, size=(first.shape[2], first.shape[3])), limit=BEYOND * top
        ),
        metrics=tuple(metrics),
        predict=lambda outputs, _: outputs[0],
        terms=relative_errors,
        label_loss=label_loss,
        show=lambda image: View(overlay=pixels(image, top)),
        note=f"PSNR and SSIM are of images with values from 0 to {top:g}{seen}.",
    )
