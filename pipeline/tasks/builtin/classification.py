"""Classification: the first output holds one score per class, and a label is the number of a class."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from pipeline.core import MetricInfo
from pipeline.data.labels import class_indices
from pipeline.tasks.losses import cross_entropy_of, divergence_of_first
from pipeline.tasks.task import ClassScores, Example, MetricSpec, Predictions, Task, Tensors, misfit

TOP_K = 5


def classifies(outputs: Tensors) -> bool:
    """Whether the first output is scores of classes: real numbers ``(N, classes)`` of at least two classes."""
    return outputs[0].ndim == 2 and outputs[0].shape[1] > 1 and outputs[0].is_floating_point()


def task(example: Example) -> Task:
    """Top-1, top-5 where there are more classes, macro F1, and agreement with the original."""
    if not classifies(example.outputs):
        raise misfit("classification needs logits (N, classes) as the first output", example.first)
    classes, reading = example.first.shape[1], ClassScores.like(example.first)
    return Task(
        name="classification",
        labels=class_indices(classes),
        metrics=tuple(_metrics(classes)),
        predict=lambda outputs, _: outputs[0],
        terms=divergence_of_first(reading),
        label_loss=cross_entropy_of(reading),
        class_axis=1,
    )


def agreement(classes: int, scores: Callable[[Predictions], Tensor] = lambda predictions: predictions) -> MetricSpec:
    """The share of samples with the same largest score as the original's.

    Args:
        scores: Where predictions have the scores of the classes ``(N, classes)``.
    """

    def update(metric: Metric, found: Predictions, expected: Predictions) -> None:
        metric.update(scores(found), scores(expected).argmax(1))

    return MetricSpec(
        info=MetricInfo(name="agreement", title="Agreement with the original", original_value=1.0),
        make=partial(MulticlassAccuracy, num_classes=classes, average="micro", sync_on_compute=False),
        update=update,
        right=lambda found, expected: scores(found).argmax(1) == scores(expected).argmax(1),
    )


def _metrics(classes: int) -> list[MetricSpec]:
    def top(k: int) -> MetricSpec:
        def right(scores: Tensor, labels: Tensor) -> Tensor:
            return (scores.topk(k, dim=1).indices == labels[:, None]).any(1)

        return MetricSpec(
            info=MetricInfo(name=f"top{k}", title=f"Top-{k} accuracy"),
            make=partial(MulticlassAccuracy, num_classes=classes, average="micro", top_k=k, sync_on_compute=False),
            right=right,
        )

    f1: Any = partial(MulticlassF1Score, num_classes=classes, average="macro", sync_on_compute=False)
    return [
        top(1),
        *([top(TOP_K)] if classes > TOP_K else []),
        MetricSpec(info=MetricInfo(name="macro_f1", title="Macro F1"), make=f1),
        agreement(classes),
    ]
