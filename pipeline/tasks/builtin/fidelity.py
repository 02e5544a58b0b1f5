"""Fidelity: how well a model answers what its original answers. The task of every model whose task is not known."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from pipeline.core import MetricInfo
from pipeline.data.labels import class_indices
from pipeline.tasks.builtin.classification import agreement, classifies
from pipeline.tasks.comparison import cosines
from pipeline.tasks.losses import TINY, cross_entropy_of, divergence_of_first, relative_errors
from pipeline.tasks.task import ClassScores, Example, MetricSpec, Predictions, Task


def task(example: Example) -> Task:
    """Agreement where the first output is class scores; signal kept, and cosine, of all outputs."""
    scores = ClassScores.like(example.first) if classifies(example.outputs) else None
    return Task(
        name="fidelity",
        labels=class_indices(example.first.shape[1]) if scores else None,
        metrics=(
            *([agreement(example.first.shape[1], lambda outputs: outputs[0])] if scores else []),
            signal(),
            cosine(),
        ),
        predict=lambda outputs, _: outputs,
        terms=divergence_of_first(scores) if scores else relative_errors,
        label_loss=cross_entropy_of(scores) if scores else None,
        class_axis=1 if scores else None,
    )


def signal() -> MetricSpec:
    """``1 - noise power / signal power`` of the output that has the least; 0.99 is 20 dB."""
    return MetricSpec(
        info=MetricInfo(name="signal", title="Signal kept", original_value=1.0),
        make=partial(LeastSignal, sync_on_compute=False),
    )


class LeastSignal(Metric):
    """The share of each output's power that is not noise, and the least of them; 0 where noise is the stronger."""

    full_state_update = False
    power: Tensor
    noise: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_state("power", default=torch.zeros(1, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("noise", default=torch.zeros(1, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outputs: Predictions, expected: Predictions) -> None:
        """Add a batch: outputs ``(N, …)`` of both."""
        pairs = [(ours.double(), theirs.double()) for ours, theirs in zip(outputs, expected, strict=True)]
        self.power = self.power + torch.stack([theirs.square().sum() for _, theirs in pairs])
        self.noise = self.noise + torch.stack([(ours - theirs).square().sum() for ours, theirs in pairs])

    def compute(self) -> Tensor:
        """Between 0 and 1."""
        kept = 1 - self.noise / self.power.clamp_min(TINY)
        return torch.where(self.noise == 0, torch.ones_like(kept), kept).min().clamp_min(0)


def cosine() -> MetricSpec:
    """The cosine between a sample's output and the original's, averaged over samples; the least of all outputs."""
    return MetricSpec(
        info=MetricInfo(name="cosine", title="Cosine to the original", unit="", original_value=1.0),
        make=partial(LeastCosine, sync_on_compute=False),
    )


class LeastCosine(Metric):
    """The mean cosine of each output, and the least of them."""

    full_state_update = False
    total: Tensor
    samples: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_state("total", default=torch.zeros(1, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("samples", default=torch.zeros(1, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outputs: Predictions, expected: Predictions) -> None:
        """Add a batch: outputs ``(N, …)`` of both."""
        found = [cosines(ours, theirs).sum() for ours, theirs in zip(outputs, expected, strict=True)]
        self.total = self.total + torch.stack(found)
        self.samples = self.samples + len(outputs[0])

    def compute(self) -> Tensor:
        """Between -1 and 1."""
        return (self.total / self.samples).min()
