"""Keypoints: places in pixels ``(N, K, 2)``, or a heat map for each ``(N, K, H, W)``."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from pipeline.core import MetricInfo, RecipeError
from pipeline.data.labels import keypoints
from pipeline.tasks.losses import TINY, relative_error, relative_errors
from pipeline.tasks.task import Example, MetricSpec, Task, Tensors, misfit

NEAR = 0.2
"""PCK@0.2: a point is right within a fifth of the larger side of the box around the sample's labelled points."""
FALLOFF = 0.08
"""OKS: the standard deviation that people show, relative to the object's size; the mean of COCO's seventeen."""


def task(example: Example) -> Task:
    """The share of keypoints that are near the labelled ones, and the object keypoint similarity."""
    first = example.first
    if not first.is_floating_point() or not (first.ndim == 4 or (first.ndim == 3 and first.shape[2] in (2, 3))):
        raise misfit("keypoints needs places (N, K, 2) or heat maps (N, K, H, W) as the first output", first)
    if any(point >= first.shape[1] for pair in example.swap or () for point in pair):
        problem = f"names a keypoint beyond the model's {first.shape[1]} (0 to {first.shape[1] - 1})"
        raise RecipeError(problem, where="task.swap", fix="correct its number")
    maps = first.ndim == 4
    size = example.image_size if maps else (0, 0)

    def predict(outputs: Tensors, _: Tensors) -> Tensor:
        return _peaks(outputs[0], size) if maps else outputs[0][..., :2]

    def near(metric: Metric, places: Tensor, labels: Tensor) -> None:
        distances, scale, _, visible = _measures(places, labels)
        metric.update((distances <= NEAR * scale)[visible].float())

    def similarity(metric: Metric, places: Tensor, labels: Tensor) -> None:
        distances, _, area, visible = _measures(places, labels)
        close = torch.exp(-distances.square() / (2 * area * (2 * FALLOFF) ** 2)) * visible
        labelled = visible.sum(1)
        metric.update((close.sum(1) / labelled.clamp_min(1))[labelled > 0])

    def label_loss(outputs: Tensors, labels: Tensor) -> Tensor:
        visible = labels[..., 2:] > 0
        return relative_error(outputs[0][..., :2] * visible, labels[..., :2] * visible)

    return Task(
        name="keypoints",
        labels=keypoints(first.shape[1], example.swap),
        metrics=(
            MetricSpec(
                info=MetricInfo(name="pck", title="PCK at 0.2"),
                make=partial(MeanMetric, sync_on_compute=False),
                update=near,
            ),
            MetricSpec(
                info=MetricInfo(name="oks", title="Object keypoint similarity"),
                make=partial(MeanMetric, sync_on_compute=False),
                update=similarity,
            ),
        ),
        predict=predict,
        terms=relative_errors,
        label_loss=None if maps else label_loss,
    )


def _peaks(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Where each map ``(N, K, H, W)`` is largest: x, y in pixels of an image of this height and width."""
    height, width = maps.shape[2:]
    best = maps.flatten(2).argmax(2)
    x = (best % width + 0.5) * (size[1] / width) - 0.5
    y = (best.div(width, rounding_mode="floor") + 0.5) * (size[0] / height) - 0.5
    return torch.stack([x, y], 2).float()


def _measures(places: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distances ``(N, K)``; larger side and area of the box around labelled points; which points are labelled."""
    visible = labels[..., 2] > 0
    distances = (places - labels[..., :2]).norm(dim=2)
    low = labels[..., :2].masked_fill(~visible[..., None], torch.inf).amin(1)
    high = labels[..., :2].masked_fill(~visible[..., None], -torch.inf).amax(1)
    sides = (high - low).clamp_min(1)
    return distances, sides.amax(1, keepdim=True), sides.prod(1, keepdim=True).clamp_min(TINY), visible
