"""Token classification and masked tokens: one logit per class and token; labels of -100 count for nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from pipeline.core import MetricInfo
from pipeline.data.labels import IGNORED_TOKEN, token_classes
from pipeline.tasks.losses import cross_entropy_where_known, divergence_of_first
from pipeline.tasks.task import ClassScores, Example, MetricSpec, Task, Tensors, misfit


def task(example: Example) -> Task:
    """The share of right tokens, and macro F1, over the tokens that have a label."""
    first = example.first
    if first.ndim != 3 or first.shape[2] < 2 or not first.is_floating_point():
        raise misfit("tokens needs logits (N, tokens, classes) as the first output", first)
    _, length, classes = first.shape
    reading = ClassScores.like(first, axis=2)

    def label_loss(outputs: Tensors, labels: Tensor) -> Tensor:
        return cross_entropy_where_known(reading.logits(outputs[0]).flatten(0, 1), labels.flatten(), IGNORED_TOKEN)

    settings: dict[str, Any] = {"num_classes": classes, "ignore_index": IGNORED_TOKEN, "sync_on_compute": False}
    return Task(
        name="tokens",
        labels=token_classes(classes, length),
        metrics=(
            MetricSpec(
                info=MetricInfo(name="token_accuracy", title="Token accuracy"),
                make=partial(MulticlassAccuracy, average="micro", **settings),
            ),
            MetricSpec(
                info=MetricInfo(name="macro_f1", title="Macro F1"),
                make=partial(MulticlassF1Score, average="macro", **settings),
            ),
        ),
        predict=lambda outputs, _: outputs[0].argmax(2),
        terms=divergence_of_first(reading),
        label_loss=label_loss,
        class_axis=2,
    )
