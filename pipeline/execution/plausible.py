"""Whether data, preprocessing and model fit together: what a run warns of before its first stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.core import Preprocessing
from pipeline.core.arrays import Array
from pipeline.data.samples import SampleSet

LOOKED_AT = 64
"""Samples of each set whose stored values are looked at."""
DIVIDES = 0.01
"""A scale up to here is meant for values up to 255, or more."""
DARK = 0.07
"""What such a scale must leave of the largest value: 17 of 255 are the 12 bits of a 16-bit image."""


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
