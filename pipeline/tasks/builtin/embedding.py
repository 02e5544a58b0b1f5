"""Embeddings: a vector per sample, compared by its angle; a label is the number of what the sample shows."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanMetric, Metric
from torchmetrics.functional.classification import binary_auroc, binary_eer

from pipeline.core import MetricInfo
from pipeline.data.labels import class_indices
from pipeline.tasks.losses import angles
from pipeline.tasks.task import Example, MetricSpec, Task, misfit


def task(example: Example) -> Task:
    """Cosine to the original; recall at 1, and AUROC and equal error rate of "the same or not", within the set."""
    first = example.first
    if first.ndim != 2 or not first.is_floating_point():
        raise misfit("embedding needs vectors (N, D) as the first output", first)

    def share(name: str) -> Any:
        return lambda found: float(found[name])

    pairs = partial(Neighbours, sync_on_compute=False)
    return Task(
        name="embedding",
        labels=class_indices(),
        metrics=(
            MetricSpec(
                info=MetricInfo(name="cosine", title="Cosine to the original", unit="", original_value=1.0),
                make=partial(MeanMetric, sync_on_compute=False),
                update=_cosines,
            ),
            MetricSpec(info=MetricInfo(name="recall1", title="Recall at 1"), make=pairs, pick=share("recall1")),
            MetricSpec(info=MetricInfo(name="auroc", title="Verification AUROC"), make=pairs, pick=share("auroc")),
            MetricSpec(
                info=MetricInfo(name="eer", title="Equal error rate", higher_is_better=False),
                make=pairs,
                pick=share("eer"),
            ),
        ),
        predict=lambda outputs, _: outputs[0],
        terms=angles,
    )


def _cosines(metric: Metric, vectors: Tensor, expected: Tensor) -> None:
    metric.update(functional.cosine_similarity(vectors, expected, dim=1))


_NUMBERS = count()
"""Tell samples apart: one that a bootstrap draws twice is no neighbour of itself."""


class Neighbours(Metric):
    """Recall at 1, AUROC and equal error rate of all pairs of a set, by the cosine of their vectors."""

    full_state_update = False
    vectors: list[Tensor]
    labels: list[Tensor]
    numbers: list[Tensor]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_state("vectors", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")
        self.add_state("numbers", default=[], dist_reduce_fx="cat")

    def update(self, vectors: Tensor, labels: Tensor) -> None:
        """Add a batch: vectors ``(N, D)`` and labels ``(N,)``."""
        self.vectors.append(functional.normalize(vectors.float(), dim=1))
        self.labels.append(labels)
        self.numbers.append(torch.tensor([next(_NUMBERS) for _ in labels]))

    def compute(self) -> dict[str, Tensor]:
        """The share of samples whose nearest other sample has their label, and both figures over all pairs."""
        vectors, labels, numbers = torch.cat(self.vectors), torch.cat(self.labels), torch.cat(self.numbers)
        cosines, others = vectors @ vectors.T, numbers[:, None] != numbers
        nearest = cosines.masked_fill(~others, -torch.inf).argmax(1)
        pairs = others.triu(1)
        scores, truth = (cosines[pairs] + 1) / 2, (labels[:, None] == labels)[pairs].long()
        return {
            "recall1": (labels[nearest] == labels).float().mean(),
            "auroc": binary_auroc(scores.clamp(0, 1), truth),
            "eer": binary_eer(scores.clamp(0, 1), truth, thresholds=1000),
        }
