"""Whether data, preprocessing and model fit together: what a run warns of before its first stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.core import Preprocessing
from pipeline.core.arrays import Array
from pipeline.data.samples import SampleSet
from pipeline.recipe import Budget
from pipeline.tasks.differences import fewest_samples, tango_interval
from pipeline.tasks.task import Task

LOOKED_AT = 64
"""Samples of each set whose stored values are looked at."""
DIVIDES = 0.01
"""A scale up to here is meant for values up to 255, or more."""
DARK = 0.07
"""What such a scale must leave of the largest value: 17 of 255 are the 12 bits of a 16-bit image."""

FEW = 30
"""Samples of which a bootstrap says something."""
ONE_IN = 8
"""Samples are held out of the set that stages learn from: one of so many."""


@dataclass(frozen=True, slots=True)
class Values:
    """The range of stored values, and their mean and standard deviation."""

    low: float
    high: float
    mean: float
    std: float

    @classmethod
    def of(cls, arrays: list[Array]) -> Values:
        every = np.concatenate([array.astype(np.float64).ravel() for array in arrays])
        return cls(float(every.min()), float(every.max()), float(every.mean()), float(every.std()))

    @property
    def standardised(self) -> bool:
        """Whether they are as after ``(x - mean) / std``."""
        return self.low < 0 and abs(self.mean) < max(0.5, self.std) and 0.3 < self.std < 3

    def __str__(self) -> str:
        return f"from {self.low:.3g} to {self.high:.3g}, mean {self.mean:.3g}"


def too_few(
    task: Task, budgets: Sequence[Budget], *, evaluation: SampleSet, held_out: SampleSet | None
) -> Iterator[str]:
    """Sets with too few samples to tell whether a budget is kept, even if not one answer changes.

    Args:
        held_out: What stages choose by; None where none does.
    """
    metrics = {spec.name: spec for spec in task.usable(labelled=evaluation.labelled)}
    for budget in budgets:
        spec = metrics[budget.metric or ""]
        allowed = spec.info.allowed(1.0, budget.max_drop, budget.max_drop_relative)
        if spec.right is None:
            if len(evaluation) < FEW:
                problem = f"says little about {spec.info.title}: its interval needs {FEW} or more"
                yield f"data.evaluation has {len(evaluation)} samples, which {problem}"
            continue
        for samples, what in ((evaluation, "the result is judged by"), (held_out, "stages choose by")):
            if samples is None:
                continue
            low, high = tango_interval(0, 0, len(samples))
            if -low > allowed and (enough := fewest_samples(0, 0, allowed)) is not None:
                shown = f"even if no answer changes, {spec.info.title} is known to {100 * high:.2g} points"
                more = "" if samples is evaluation else f", which are {ONE_IN} times as many in {_whole(samples)}"
                yield (
                    f"{samples.name} has {len(samples)} samples that {what}: {shown}, and the budget is "
                    f"{100 * allowed:.2g}. About {enough} would tell{more}"
                )


def _whole(held_out: SampleSet) -> str:
    return f"data.{held_out.name.partition(' ')[0]}"


def doubtful_values(sets: Mapping[str, SampleSet]) -> Iterator[str]:
    """What shows that preprocessing is meant for other values than those that are stored."""
    for role, samples in sets.items():
        used = samples.preprocessing
        if used.scale == 1 and not used.mean and not used.std:
            continue
        for spec, values in zip(samples.inputs, _stored(samples), strict=True):
            if spec.dtype.startswith("float") and (problem := _problem(values, used, image=len(spec.shape) == 3)):
                fix = f"give the set its own: data.{role}.preprocessing: {{}}, or correct data.preprocessing"
                yield f"data.{role}: {spec.name} {problem} (stored values: {values}). If that is not meant, {fix}"


def _problem(values: Values, used: Preprocessing, *, image: bool) -> str | None:
    """What is doubtful about these values and this preprocessing, after the name of the input."""
    if values.low < 0 and (image or used.mean or used.std) and values.standardised:
        return "looks normalised already, and preprocessing normalises it again"
    if not image or values.low < 0:
        return None
    if 0 < used.scale <= DIVIDES and 0 < values.high * used.scale < DARK:
        return f"is divided by {1 / used.scale:.4g}, and its values are small already"
    means = all(0 < each <= 1 for each in (*used.mean, *used.std))
    if used.scale == 1 and means and values.high > 10:
        return "has values up to 255, and mean and std are those of values up to 1: scale is missing"
    return None


def _stored(samples: SampleSet) -> list[Values]:
    """Of each input, before preprocessing; one sample is read at a time."""
    read = [samples.source.read([index])[0] for index in samples.take(LOOKED_AT).indices]
    return [Values.of([np.asarray(arrays[place][0]) for arrays in read]) for place in range(len(samples.inputs))]
