"""Samples in a NumPy archive."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.core import DataError
from pipeline.core.arrays import Array


class NpzSource:
    """Arrays of a NumPy archive, in the dtype they are stored in."""

    def __init__(self, path: Path, inputs: Sequence[str], labels: str | None) -> None:
        self.where = str(path)
        if not path.is_file():
            raise DataError("no such file", where=self.where, fix="paths are relative to the recipe")
        if not zipfile.is_zipfile(path):
            raise DataError("is not a readable npz", where=self.where, fix="write it with numpy.savez_compressed")
        try:
            with np.load(path, allow_pickle=False) as archive:
                missing = [name for name in inputs if name not in archive.files]
                if missing:
                    raise DataError(
                        f"has no array {missing[0]!r}; it holds {', '.join(archive.files)}",
                        where=self.where,
                        fix="name its arrays in the recipe: inputs: [...], labels: ...",
                    )
                self._inputs = tuple(archive[name] for name in inputs)
                self._labels = archive[labels] if labels is not None and labels in archive.files else None
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"is not a readable npz: {error}", where=self.where) from None
        self.labelled = self._labels is not None
        lengths = {len(array) for array in (*self._inputs, *(() if self._labels is None else (self._labels,)))}
        if len(lengths) != 1:
            raise DataError(f"its arrays have different lengths: {sorted(lengths)}", where=self.where)

    def __len__(self) -> int:
        return len(self._inputs[0])

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Array | None]:
        chosen = np.asarray(indices, dtype=np.intp)  # also where there are none
        labels = None if self._labels is None else self._labels[chosen]
        return tuple(array[chosen] for array in self._inputs), labels
