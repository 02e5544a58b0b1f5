"""Binary scores: yes or no for each sample ``(N,)``, or for each frame ``(N, T)``, as for voice activity."""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC, BinaryF1Score

from pipeline.core import MetricInfo
from pipeline.data.labels import yes_or_no
from pipeline.data.places import NOWHERE, in_order
from pipeline.tasks.losses import binary_divergence_of_first
from pipeline.tasks.task import BinaryScores, Example, MetricSpec, Task, Tensors, misfit


def task(example: Example) -> Task:
    """Area under the ROC curve, and F1 at a threshold of one half, over all samples and frames."""
    first = example.first
    if first.ndim > 3 or not first.is_floating_point():
        raise misfit("binary needs one score per sample (N,) or per frame (N, T) as the first output", first)
    reading, shape = BinaryScores.like(first), tuple(size for size in first.shape[1:] if size != 1)

    def update(metric: Metric, scores: Tensor, labels: Tensor) -> None:
        metric.update(scores.flatten(), labels.flatten().long())

    def label_loss(outputs: Tensors, labels: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(reading.logits(outputs[0]).reshape(labels.shape), labels)

    return Task(
        name="binary",
        labels=yes_or_no(shape, in_order("frames") if shape else NOWHERE),
        metrics=(
            MetricSpec(
                info=MetricInfo(name="auroc", title="Area under the ROC curve"),
                make=partial(BinaryAUROC, sync_on_compute=False),
                update=update,
            ),
            MetricSpec(
                info=MetricInfo(name="f1", title="F1"),
                make=partial(BinaryF1Score, sync_on_compute=False),
                update=update,
            ),
        ),
        predict=lambda outputs, _: reading.probabilities(outputs[0]),
        terms=binary_divergence_of_first(reading),
        label_loss=label_loss,
    )
