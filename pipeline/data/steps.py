"""Sequences of steps as samples, and their single steps as samples of a set in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.core import DataError, Preprocessing, TensorSpec
from pipeline.core.arrays import Array
from pipeline.data.samples import SampleSet, Source


def as_sequences(samples: SampleSet) -> SampleSet:
    """The set with inputs ``(N, steps, …)``: each sample has as many steps as the first.

    Args:
        samples: Its inputs are those of one step.

    Raises:
        DataError: A sample has no axis of steps, or inputs have different numbers of them.
    """
    arrays, _ = samples.source.read([samples.indices[0]])
    found: list[TensorSpec] = []
    for array, spec in zip(arrays, samples.inputs, strict=True):
        first = np.asarray(array[0])
        if first.ndim != len(spec.shape) + 1:
            raise DataError(
                f"samples of {spec.name!r} have shape {list(first.shape)}, and the model keeps states: a sample is a "
                f"sequence {['steps', *spec.shape]}",
                where=samples.source.where,
                fix="store sequences (N, steps, …), or remove model.states",
            )
        found.append(spec.model_copy(update={"shape": (len(first), *spec.shape)}))
    if len({spec.shape[0] for spec in found}) > 1:
        stated = ", ".join(f"{spec.name} {spec.shape[0]}" for spec in found)
        raise DataError(f"inputs have different numbers of steps: {stated}", where=samples.source.where)
    return replace(samples, inputs=tuple(found))


class StepSource(Source):
    """Single steps of sequences, with the states that the original had there; without labels.

    Args:
        steps: One tensor ``(steps, …)`` per input of the model.
    """

    def __init__(self, where: str, steps: Sequence[Tensor]) -> None:
        self.where, self.labels_where, self.labelled = where, where, False
        self._arrays = tuple(values.numpy() for values in steps)

    def __len__(self) -> int:
        return len(self._arrays[0])

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Any]:
        return tuple(array[np.asarray(indices, np.intp)] for array in self._arrays), None


def of_steps(sequences: SampleSet, steps: Sequence[Tensor], inputs: tuple[TensorSpec, ...]) -> SampleSet:
    """A set of single steps of these sequences."""
    source = StepSource(f"{sequences.source.where}: steps", steps)
    return SampleSet(sequences.name, source, inputs, Preprocessing(), tuple(range(len(source))))
