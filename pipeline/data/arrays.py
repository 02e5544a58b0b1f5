"""Samples in memory, as arrays with one row per sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.core import DataError
from pipeline.core.arrays import Array
from pipeline.data.samples import Source


class ArraySource(Source):
    """One array ``(N, …)`` per model input and, perhaps, one of labels.

    Raises:
        DataError: An array holds no numbers, has no rows, or another number of them.
    """

    def __init__(self, arrays: Sequence[Array], labels: Array | None, where: str) -> None:
        self.where, self.labels_where, self.labelled = where, f"{where}: labels", labels is not None
        self._arrays, self._labels = tuple(arrays), labels
        for array in (*arrays, *(() if labels is None else (labels,))):
            if array.dtype.kind not in "biuf":
                raise DataError(f"holds {array.dtype}, not numbers of one size", where=where, fix="give arrays (N, …)")
            if array.ndim == 0:
                raise DataError("holds a single number", where=where, fix="give one row per sample: (N, …)")
        lengths = [len(array) for array in (*arrays, *(() if labels is None else (labels,)))]
        if len(set(lengths)) > 1:
            problem = f"its arrays have different lengths: {', '.join(map(str, lengths))}"
            raise DataError(problem, where=where, fix="give one row per sample in each of them")

    def __len__(self) -> int:
        return len(self._arrays[0])

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Any]:
        chosen = np.asarray(indices, dtype=np.intp)
        return tuple(array[chosen] for array in self._arrays), None if self._labels is None else self._labels[chosen]
