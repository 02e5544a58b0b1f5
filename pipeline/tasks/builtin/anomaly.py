"""Anomaly detection: the larger its score, the stranger a sample.

A model that returns its input is scored by its error.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC

from pipeline.core import MetricInfo
from pipeline.data.labels import yes_or_no
from pipeline.tasks.losses import relative_errors
from pipeline.tasks.task import Example, MetricSpec, Task, Tensors


def task(example: Example) -> Task:
    """Area under the ROC curve; labels are 1 for anomalies and 0 for others."""
    reconstructs = example.first.shape == example.inputs[0].shape

    def score(outputs: Tensors, inputs: Tensors) -> Tensor:
        """One number per sample ``(N,)``: the mean squared error, or the mean of the first output."""
        found = (outputs[0] - inputs[0]).square() if reconstructs else outputs[0]
        return found.flatten(1).mean(1) if found.ndim > 1 else found

    def update(metric: Metric, scores: Tensor, labels: Tensor) -> None:
        metric.update(0.5 + scores.double().atan() / 3.1416, labels.long())  # in [0, 1], in the same order

    return Task(
        name="anomaly",
        labels=yes_or_no(()),
        metrics=(
            MetricSpec(
                info=MetricInfo(name="auroc", title="Area under the ROC curve"),
                make=partial(BinaryAUROC, sync_on_compute=False),
                update=update,
            ),
        ),
        predict=score,
        terms=relative_errors,
    )
