"""Scores: a task's metrics of one model, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torchmetrics import Metric

from pipeline.data.labels import Labels
from pipeline.tasks.task import MetricSpec, Task, Tensors


class Scores:
    """The metrics of a model, and how it compares with its original where that is given.

    Each process that shares a run sees all samples, so nothing is summed over processes.

    Args:
        labelled: Whether batches come with labels.
        compared: Whether the original's outputs are given, and are another model's.
    """

    def __init__(self, task: Task, *, labelled: bool, compared: bool = True) -> None:
        self._task, self._samples = task, 0
        self._specs = [spec for spec in task.usable(labelled=labelled) if compared or spec.needs_labels]
        self._metrics: dict[Callable[[], Metric], Metric] = {spec.make: spec.make() for spec in self._specs}

    @torch.no_grad()
    def update(self, inputs: Tensors, outputs: Tensors, original: Tensors, labels: Labels | None) -> None:
        """Add a batch: inputs, outputs and the original's outputs, and the labels where there are any."""
        if not self._specs:
            return
        found = self._task.predict(outputs, inputs)
        expected = self._task.predict(original, inputs) if self._compared else None
        seen: set[Callable[[], Metric]] = set()
        for spec in self._specs:
            if spec.make not in seen:
                seen.add(spec.make)
                spec.update(self._metrics[spec.make], found, labels if spec.needs_labels else expected)
        self._samples += len(inputs[0])

    @property
    def _compared(self) -> bool:
        return any(not spec.needs_labels for spec in self._specs)

    def values(self) -> dict[str, float]:
        """Each metric's value, in the task's order; nothing before the first batch."""
        if not self._samples:
            return {}
        computed: dict[Callable[[], Metric], Any] = {make: metric.compute() for make, metric in self._metrics.items()}
        return {spec.name: self._exact(spec, spec.pick(computed[spec.make])) for spec in self._specs}

    def _exact(self, spec: MetricSpec, value: float) -> float:
        """A share of samples as the ratio that it is: torchmetrics divides in float32."""
        return value if spec.right is None else round(value * self._samples) / self._samples
