"""Labels: the class of each sample, as an integer."""

from __future__ import annotations

import numpy as np

from pipeline.core import DataError
from pipeline.core.arrays import Array


def class_indices(labels: Array, where: str) -> Array:
    """Labels ``(N,) int64`` of what a user has stored: integers, or other numbers with integral values.

    Raises:
        DataError: They are something else, such as names, vectors or boxes.

    >>> class_indices(np.array([1.0, 0.0]), "test.npz: labels")
    array([1, 0])
    """
    fix = "store one integer for each sample, the index of its class; or set labels: null if there are no classes"
    if labels.ndim != 1:
        if labels.ndim == 2 and labels.shape[1] > 1:
            fix = "store the index of each sample's class: labels.argmax(1)"
        elif labels.ndim == 2:
            fix = "store a flat array: labels.ravel()"
        raise DataError(f"has the shape {labels.shape}, not one number for each sample", where=where, fix=fix)
    if labels.dtype.kind not in "biuf":
        shown = f", such as {labels[0]!r}" if len(labels) else ""
        raise DataError(f"holds {labels.dtype}, not integers{shown}", where=where, fix=fix)
    wrong = np.flatnonzero(~np.isfinite(labels) | (labels != np.floor(labels)))
    if len(wrong):
        raise DataError(f"sample {wrong[0]} has {labels[wrong[0]]}, not an integer", where=where, fix=fix)
    return labels.astype(np.int64)
