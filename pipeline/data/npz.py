"""Samples in a NumPy archive."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.core import DataError, did_you_mean, first_line
from pipeline.core.arrays import Array
from pipeline.core.files import require_file
from pipeline.data.archive import stated_arrays
from pipeline.data.labels import class_indices
from pipeline.data.source import DataSource

_WRITE = "write it with numpy.savez_compressed(path, images=…, labels=…)"
_DEFAULT_LABELS = DataSource.model_fields["labels"].default


class NpzSource:
    """Arrays of a NumPy archive, in the dtype they are stored in."""

    def __init__(self, path: Path, inputs: Sequence[str], labels: str | None) -> None:
        self.where = str(path)
        require_file(path, DataError)
        if not zipfile.is_zipfile(path):
            raise DataError("is not a readable npz", where=self.where, fix=_WRITE)
        try:
            archive = np.load(path, allow_pickle=False)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"is not a readable npz: {first_line(error)}", where=self.where, fix=_WRITE) from None
        with archive:
            wanted = [*inputs, *([] if labels is None or labels == _DEFAULT_LABELS else [labels])]
            missing = next((name for name in wanted if name not in archive.files), None)
            if missing is not None:
                raise DataError(
                    f"has no array {missing!r}; it holds {', '.join(archive.files[:20])}; "
                    f"{did_you_mean(missing, archive.files)}",
                    where=self.where,
                    fix="name its arrays in the recipe: inputs: [...], labels: ...",
                )
            self._inputs = tuple(self._array(archive, name) for name in inputs)
            stored = None if labels is None or labels not in archive.files else self._array(archive, labels)
        self._labels = None if stored is None else class_indices(stored, f"{path}: {labels}")
        self.labelled = self._labels is not None
        lengths = {len(array) for array in (*self._inputs, *(() if self._labels is None else (self._labels,)))}
        if len(lengths) != 1:
            raise DataError(
                f"its arrays have different lengths: {sorted(lengths)}",
                where=self.where,
                fix="store one row per sample",
            )

    def _array(self, archive: np.lib.npyio.NpzFile, name: str) -> Array:
        where = f"{self.where}: {name}"
        try:
            stated_arrays(archive, [name], self.where)
            array = archive[name]
        except DataError:
            raise
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise DataError(f"is not a readable array: {first_line(error)}", where=where, fix=_WRITE) from None
            fix = "store numbers: numpy.stack(list_of_arrays)"
            problem = f"is not a readable npz: {name!r} holds pickled objects, which are never loaded"
            raise DataError(problem, where=self.where, fix=fix) from None
        except Exception as error:  # a damaged member fails in zipfile, zlib or NumPy, whichever meets it first
            raise DataError(f"is not a readable npz: {first_line(error)}", where=where, fix=_WRITE) from None
        if not isinstance(array, np.ndarray):
            raise DataError("is not an array in NumPy's format", where=where, fix=_WRITE)
        if array.ndim == 0:
            raise DataError("holds a single number", where=where, fix="store one row per sample")
        return array

    def __len__(self) -> int:
        return len(self._inputs[0])

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Array | None]:
        chosen = np.asarray(indices, dtype=np.intp)  # also where there are none
        labels = None if self._labels is None else self._labels[chosen]
        return tuple(array[chosen] for array in self._inputs), labels
