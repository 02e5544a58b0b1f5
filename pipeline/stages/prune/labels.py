"""Labels that say which elements of a network's tensors can only be removed together.

Every axis of every tensor has one label per index. Two indices with one label leave the network together; an index
with label 0 never leaves. Operators join labels (`Labels.join`) or forbid their removal (`Labels.keep`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Axis = npt.NDArray[np.int64]
"""The labels along one axis: ``(size,)``."""

Axes = tuple[Axis, ...]
"""The labels of a tensor, one `Axis` per dimension."""


def kept_axis(size: int) -> Axis:
    """An axis of which nothing can be removed."""
    return np.zeros(size, np.int64)


class Labels:
    """Labels that were joined, as disjoint sets, and why some must stay."""

    def __init__(self) -> None:
        self._parents = [0]
        self._reasons: dict[int, str] = {}

    def new(self, size: int) -> Axis:
        """An axis whose indices can be removed one by one; an axis of size 1 is always kept."""
        if size <= 1:
            return kept_axis(size)
        start = len(self._parents)
        self._parents.extend(range(start, start + size))
        return np.arange(start, start + size)

    def join(self, first: Axis, second: Axis, reason: str) -> None:
        """Let equal positions leave together; a label that meets a 0 must stay, for this reason."""
        if first is second or np.array_equal(first, second):
            return
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            if one and other:
                self._parents[self._find(one)] = self._find(other)
            elif one or other:
                self._reasons.setdefault(one or other, reason)

    def join_rows(self, rows: npt.NDArray[np.int64], reason: str) -> Axis:
        """Let all rows of a matrix leave together, position by position. Returns the first row."""
        for row in rows[1:]:
            self.join(rows[0], row, reason)
        first: Axis = rows[0]
        return first

    def keep(self, axis: Axis, reason: str) -> None:
        """Forbid that any index of an axis is removed."""
        for label in set(axis.tolist()) - {0}:
            self._reasons.setdefault(label, reason)

    def sets(self, axis: Axis) -> list[int]:
        """The set that each index of an axis belongs to, named by one of its labels."""
        return [self._find(label) for label in axis.tolist()]

    def reasons(self) -> dict[int, str]:
        """Why a set must stay, for each that must."""
        found: dict[int, str] = {}
        for label, reason in self._reasons.items():
            found.setdefault(self._find(label), reason)
        return found

    def _find(self, label: int) -> int:
        parents = self._parents
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label
