"""Multi-label classification: independent answers, one per class; a label is a zero or a one for each."""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score

from pipeline.core import MetricInfo
from pipeline.data.labels import yes_or_no
from pipeline.tasks.losses import binary_divergence_of_first
from pipeline.tasks.task import BinaryScores, Example, MetricSpec, Task, Tensors, misfit


def task(example: Example) -> Task:
    """Mean average precision over classes, and macro F1 at a threshold of one half."""
    first = example.first
    if first.ndim != 2 or first.shape[1] < 2 or not first.is_floating_point():
        raise misfit("multilabel needs one score per class (N, classes) as the first output", first)
    classes, reading = first.shape[1], BinaryScores.like(first)

    def update(metric: Metric, scores: Tensor, labels: Tensor) -> None:
        metric.update(scores, labels.long())

    def label_loss(outputs: Tensors, labels: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(reading.logits(outputs[0]), labels)

    return Task(
        name="multilabel",
        labels=yes_or_no((classes,)),
        metrics=(
            MetricSpec(
                info=MetricInfo(name="map", title="Mean average precision"),
                make=partial(MultilabelAveragePrecision, num_labels=classes, sync_on_compute=False),
                update=update,
            ),
            MetricSpec(
                info=MetricInfo(name="macro_f1", title="Macro F1"),
                make=partial(MultilabelF1Score, num_labels=classes, sync_on_compute=False),
                update=update,
            ),
        ),
        predict=lambda outputs, _: reading.probabilities(outputs[0]),
        terms=binary_divergence_of_first(reading),
        label_loss=label_loss,
    )
