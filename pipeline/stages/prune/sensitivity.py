"""Sensitivity: how far the outputs move when some channels of one group alone are removed.

The curves decide how much is removed from each group. The next step is always the one that moves the outputs least for
what it saves, which for convex curves is the best division of a budget (Lagrange multipliers; Shoham and Gersho 1988,
https://doi.org/10.1109/29.90373).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.core import Record
from pipeline.data.samples import SampleSet
from pipeline.stages.prune.channels import CoupledChannels, remove, steps_of
from pipeline.tasks.prediction import predictor
from pipeline.tasks.task import Task

_RATIOS = (1 / 3, 2 / 3, 1.0)  # of a group's steps
_SENSITIVITY_SAMPLES = 128


class Curve(Record):
    """One group's sensitivity, at a few depths of pruning.

    Attributes:
        steps: How many of the group's steps were taken.
        removed_ratio: Share of the group's channels that they remove.
        divergence: The task's distillation loss against the original: of class scores the mean Kullback-Leibler
            divergence in nats, of most other outputs the squared error relative to the original's mean square.
        saved: Share of the whole model's cost that they save, averaged over the budgets.
    """

    layer: str
    steps: tuple[int, ...]
    removed_ratio: tuple[float, ...]
    divergence: tuple[float, ...]
    saved: tuple[float, ...]


def sensitivity(
    module: nn.Module,
    groups: Sequence[CoupledChannels],
    max_layer_ratio: float,
    data: SampleSet,
    task: Task,
    kept_share: Callable[[nn.Module], float],
) -> list[Curve]:
    """One curve per group, measured by removing its least important channels, and only its, at a few depths."""
    moved = movement(module, data, task)
    curves = []
    for group in groups:
        steps = steps_of(group, max_layer_ratio)
        depths = sorted({max(1, round(ratio * len(steps))) for ratio in _RATIOS})
        trials = [remove(module, steps[:depth]) for depth in depths]
        removed = [sum(step.units for step in steps[:depth]) / len(group.units) for depth in depths]
        curves.append(
            Curve(
                layer=group.name,
                steps=tuple(depths),
                removed_ratio=tuple(removed),
                divergence=tuple(moved(trial) for trial in trials),
                saved=tuple(1 - kept_share(trial) for trial in trials),
            )
        )
    return curves


def damages(curve: Curve, steps: int) -> list[float]:
    """What each of a group's steps costs per share of the model that it saves; never less than the step before.

    >>> curve = Curve(layer="a", steps=(2, 4), removed_ratio=(0.2, 0.4), divergence=(0.1, 0.5), saved=(0.1, 0.2))
    >>> [round(value, 6) for value in damages(curve, 4)]
    [1.0, 1.0, 4.0, 4.0]
    """
    at = np.arange(steps + 1)
    moved = np.diff(np.interp(at, (0, *curve.steps), (0.0, *curve.divergence)))
    saved = np.diff(np.interp(at, (0, *curve.steps), (0.0, *curve.saved)))
    slopes = np.maximum(moved, 0) / np.maximum(saved, 1e-9)
    return [float(slope) for slope in np.maximum.accumulate(slopes)]


def movement(module: nn.Module, data: SampleSet, task: Task) -> Callable[[nn.Module], float]:
    """Measures how far another module's outputs are from those of ``module`` on some of the samples."""
    samples = data.take(_SENSITIVITY_SAMPLES)
    expected = _outputs(module, samples)
    return lambda other: divergence(_outputs(other, samples), expected, task)


def divergence(outputs: tuple[Tensor, ...], expected: tuple[Tensor, ...], task: Task) -> float:
    """How far outputs are from those expected; see `Curve`."""
    ours, theirs = (tuple(_exact(output) for output in each) for each in (outputs, expected))
    return float(torch.stack(task.terms(ours, theirs, 1.0)).sum())


def _exact(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values


def _outputs(module: nn.Module, samples: SampleSet) -> tuple[Tensor, ...]:
    predict = predictor(module)
    parts = [predict(batch.inputs) for batch in samples.batches(64)]
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
