"""Samples in a NumPy archive."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import DataError, did_you_mean, first_line
from pipeline.core.arrays import Array
from pipeline.core.files import require_file
from pipeline.data.archive import stated_arrays
from pipeline.data.samples import Source
from pipeline.data.source import DataSource

_WRITE = "write it with numpy.savez_compressed(path, images=…, labels=…)"
_DEFAULT_LABELS = DataSource.model_fields["labels"].default


class NpzSource(Source):
    """Arrays of a NumPy archive, in the dtype they are stored in."""

    def __init__(self, path: Path, inputs: Sequence[str], labels: str | Mapping[str, str] | None) -> None:
        self.where = str(path)
        require_file(path, DataError)
        if not zipfile.is_zipfile(path):
            raise DataError("is not a readable npz", where=self.where, fix=_WRITE)
        try:
            archive = np.load(path, allow_pickle=False)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"is not a readable npz: {first_line(error)}", where=self.where, fix=_WRITE) from None
        with archive:
            named = {} if labels is None else {"": labels} if isinstance(labels, str) else dict(labels)
            if labels == _DEFAULT_LABELS and labels not in archive.files:
                named = {}
            wanted = [*inputs, *named.values()]
            missing = next((name for name in wanted if name not in archive.files), None)
            if missing is not None:
                raise DataError(
                    f"has no array {missing!r}; it holds {', '.join(archive.files[:20])}; "
                    f"{did_you_mean(missing, archive.files)}",
                    where=self.where,
                    fix="name its arrays in the recipe: inputs: [...], labels: ...",
                )
            self._inputs = tuple(self._array(archive, name) for name in inputs)
            parts = {part: self._array(archive, name) for part, name in named.items()}
        self._offsets = self._checked_offsets(parts, len(self._inputs[0]))
        self._parts, self.labelled = parts, bool(named)
        self.labels_where = f"{path}: {labels}" if isinstance(labels, str) else f"{path}: labels"
        rows = {} if self._offsets is not None else parts
        lengths = {len(array) for array in (*self._inputs, *rows.values())}
        if len(lengths) != 1:
            raise DataError(
                f"its arrays have different lengths: {sorted(lengths)}",
                where=self.where,
                fix="store one row per sample",
            )

    def _checked_offsets(self, parts: dict[str, Array], samples: int) -> Array | None:
        """Where each sample's rows of the other parts begin and end, where labels have different sizes."""
        offsets = parts.pop("offsets", None)
        if offsets is None:
            return None
        if not parts:
            problem = "names where rows begin, and no array of rows"
            raise DataError(problem, where=f"{self.where}: labels.offsets", fix="name it: labels: {values: …}")
        wrong = (
            offsets.ndim != 1
            or offsets.dtype.kind not in "iu"
            or len(offsets) != samples + 1
            or offsets[0] != 0
            or bool((np.diff(offsets.astype(np.int64)) < 0).any())
            or any(len(array) != offsets[-1] for array in parts.values())
        )
        if wrong:
            raise DataError(
                f"is not {samples + 1} ascending integers from 0 to the number of rows of the other parts",
                where=f"{self.where}: labels.offsets",
                fix="store numpy.cumsum([0, *(len(rows) for rows in labels)])",
            )
        return offsets

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

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Any]:
        chosen = np.asarray(indices, dtype=np.intp)  # also where there are none
        return tuple(array[chosen] for array in self._inputs), self._labels(chosen) if self.labelled else None

    def _labels(self, chosen: Array) -> Any:
        """Rows of the one array, or a part of each array for every sample."""
        if "" in self._parts:
            return self._parts[""][chosen]
        if self._offsets is None:
            return [{part: array[index] for part, array in self._parts.items()} for index in chosen]
        ranges = [slice(self._offsets[index], self._offsets[index + 1]) for index in chosen]
        if len(self._parts) == 1:  # such as texts of different lengths
            (array,) = self._parts.values()
            return [array[rows] for rows in ranges]
        return [{part: array[rows] for part, array in self._parts.items()} for rows in ranges]
