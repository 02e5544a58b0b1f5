"""Regression: numbers for each sample; a label has the shape of the first output."""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, R2Score

from pipeline.core import MetricInfo
from pipeline.data.labels import numbers
from pipeline.data.places import MAY_BE_POSITIONS
from pipeline.tasks.losses import relative_error, relative_errors
from pipeline.tasks.task import Example, MetricSpec, Task, Tensors, misfit


def task(example: Example) -> Task:
    """Mean absolute error and root mean squared error over all values; R2, averaged over the numbers of a vector."""
    first = example.first
    if not first.is_floating_point():
        raise misfit("regression needs real numbers as the first output", first)
    shape = tuple(size for size in first.shape[1:] if size != 1)

    def update(metric: Metric, values: Tensor, labels: Tensor) -> None:
        metric.update(values.flatten(), labels.flatten())

    def explained(metric: Metric, values: Tensor, labels: Tensor) -> None:
        rows = (len(labels), -1) if len(shape) == 1 else (-1,)
        metric.update(values.reshape(rows), labels.reshape(rows))

    def label_loss(outputs: Tensors, labels: Tensor) -> Tensor:
        return relative_error(outputs[0].reshape(labels.shape), labels)

    return Task(
        name="regression",
        labels=numbers(shape, MAY_BE_POSITIONS),
        metrics=(
            MetricSpec(
                info=MetricInfo(name="mae", title="Mean absolute error", unit="", higher_is_better=False),
                make=partial(MeanAbsoluteError, sync_on_compute=False),
                update=update,
            ),
            MetricSpec(
                info=MetricInfo(name="rmse", title="Root mean squared error", unit="", higher_is_better=False),
                make=partial(MeanSquaredError, squared=False, sync_on_compute=False),
                update=update,
            ),
            MetricSpec(
                info=MetricInfo(name="r2", title="R2", unit=""),
                make=partial(R2Score, sync_on_compute=False),
                update=explained,
            ),
        ),
        predict=lambda outputs, _: outputs[0],
        terms=relative_errors,
        label_loss=label_loss,
    )
