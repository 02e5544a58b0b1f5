"""Depth: a positive number per pixel. Labels of zero or below are pixels without a measurement."""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torchmetrics import MeanMetric, Metric

from pipeline.core import MetricInfo
from pipeline.data.labels import numbers
from pipeline.data.places import Places
from pipeline.tasks.losses import TINY, relative_errors
from pipeline.tasks.task import Example, MetricSpec, Task, Tensors, misfit

NEAR = 1.25
"""Eigen et al. 2014, https://arxiv.org/abs/1406.2283: a depth is near where the ratio to the true one is below this."""


def task(example: Example) -> Task:
    """Mean error relative to the true depth, and the share of pixels within 25 % of it."""
    first = example.first
    if first.ndim not in (3, 4) or (first.ndim == 4 and first.shape[1] != 1) or not first.is_floating_point():
        raise misfit("depth needs a map (N, H, W) or (N, 1, H, W) as the first output", first)
    height, width = first.shape[-2:]

    def relative(metric: Metric, depth: Tensor, labels: Tensor) -> None:
        known = labels > 0
        metric.update((depth - labels).abs()[known] / labels[known])

    def near(metric: Metric, depth: Tensor, labels: Tensor) -> None:
        known = labels > 0
        found, true = depth[known].clamp_min(TINY), labels[known]
        metric.update(((found / true).maximum(true / found) < NEAR).float())

    def label_loss(outputs: Tensors, labels: Tensor) -> Tensor:
        known = labels > 0
        errors = (outputs[0].reshape(labels.shape) - labels).abs()[known] / labels[known]
        return errors.sum() / known.sum().clamp_min(1)

    return Task(
        name="depth",
        labels=numbers((height, width), Places(kind="map")),
        metrics=(
            MetricSpec(
                info=MetricInfo(name="abs_rel", title="Absolute relative error", higher_is_better=False),
                make=partial(MeanMetric, sync_on_compute=False),
                update=relative,
            ),
            MetricSpec(
                info=MetricInfo(name="delta1", title="Depths within 25 %"),
                make=partial(MeanMetric, sync_on_compute=False),
                update=near,
            ),
        ),
        predict=lambda outputs, _: outputs[0].reshape(len(outputs[0]), height, width),
        terms=relative_errors,
        label_loss=label_loss,
    )
