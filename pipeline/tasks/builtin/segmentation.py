"""Semantic segmentation: the first output holds one logit per class and pixel; a label is a mask of class indices."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from pipeline.core import MetricInfo, RecipeError
from pipeline.data.labels import mask
from pipeline.data.places import IGNORED
from pipeline.tasks.losses import cross_entropy_where_known, divergence_of_first
from pipeline.tasks.pictures import View, coloured
from pipeline.tasks.task import FIX, ClassScores, Example, MetricSpec, Task, Tensors, misfit


def task(example: Example) -> Task:
    """Mean intersection over union of the classes that occur, and the share of right pixels."""
    first = example.first
    if first.ndim != 4 or first.shape[1] < 2 or not first.is_floating_point():
        raise misfit("segmentation needs logits (N, classes, H, W) as the first output", first)
    _, classes, height, width = first.shape
    reading = ClassScores.like(first)
    if classes > IGNORED:
        problem = f"tells apart {IGNORED} classes at most, as {IGNORED} marks pixels that count for nothing"
        raise RecipeError(f"{problem}, and the model has {classes}", where="task", fix=FIX)

    image = example.image_size if example.inputs and example.inputs[0].ndim == 4 else None

    def update(metric: Metric, found: Tensor, labels: Tensor) -> None:
        if found.shape != labels.shape:  # a mask of the image's size, and a smaller output
            found = functional.interpolate(found[:, None].float(), labels.shape[1:], mode="nearest-exact")[:, 0].long()
        metric.update(found, labels)

    def label_loss(outputs: Tensors, labels: Tensor) -> Tensor:
        logits = reading.logits(outputs[0])
        if logits.shape[2:] != labels.shape[1:]:
            logits = functional.interpolate(logits, labels.shape[1:], mode="bilinear")
        return cross_entropy_where_known(logits, labels, IGNORED)

    settings: dict[str, Any] = {"num_classes": classes, "ignore_index": IGNORED, "sync_on_compute": False}
    return Task(
        name="segmentation",
        labels=mask(classes, height, width, image=image),
        metrics=(
            MetricSpec(
                info=MetricInfo(name="miou", title="Mean IoU"),
                make=partial(MulticlassJaccardIndex, average="macro", **settings),
                update=update,
            ),
            MetricSpec(
                info=MetricInfo(name="pixel_accuracy", title="Pixel accuracy"),
                make=partial(MulticlassAccuracy, average="micro", **settings),
                update=update,
            ),
        ),
        predict=lambda outputs, _: outputs[0].argmax(1),
        terms=divergence_of_first(reading),
        label_loss=label_loss,
        class_axis=1,
        show=lambda found: View(overlay=coloured(found)),
    )
