"""Samples in a data set that Hugging Face ``datasets`` has saved on disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core import DataError, TensorSpec, did_you_mean, first_line
from pipeline.core.files import require_folder
from pipeline.data.rows import RowSource, Tokenize

logger = logging.getLogger(__name__)


class HuggingFaceSource(RowSource):
    """The rows of a saved data set, which stay on the disk until they are asked for.

    Images are decoded as in any other source, not by ``datasets``. Columns of its type ``ClassLabel`` name classes.

    Args:
        path: What ``save_to_disk`` has written.
        split: Which of several data sets that were saved together.

    Raises:
        DataError: The package is missing, or this is no saved data set, or there is no such split or column.
    """

    def __init__(
        self,
        path: Path,
        split: str | None,
        specs: Sequence[TensorSpec],
        inputs: Sequence[str],
        labels: str | Mapping[str, str] | None,
        classes: Sequence[str] = (),
        tokenize: Tokenize | None = None,
    ) -> None:
        stored = _opened(path, split)
        self._rows, features = stored.with_format("arrow"), stored.features  # which decodes nothing
        where = str(path) if split is None else f"{path}: {split}"
        super().__init__(
            where,
            self._rows.column_names,
            specs=specs,
            inputs=inputs,
            labels=labels,
            classes=classes,
            folder=path,
            tokenize=tokenize,
        )
        self._names = {name: names for name in self.label_columns if (names := _class_names(features, name))}
        if not self.classes:
            self.classes = tuple(next(iter(self._names.values()), ()))

    def __len__(self) -> int:
        return len(self._rows)

    def row_name(self, index: int) -> str:
        return f"{self.where}: row {index}"

    def row(self, index: int) -> Mapping[str, Any]:
        try:
            row: dict[str, Any] = self._rows[index].to_pylist()[0]
        except Exception as error:  # a damaged file fails in pyarrow in many ways
            problem = f"cannot be read: {first_line(error)}"
            raise DataError(problem, where=self.row_name(index), fix="save the data set again") from None
        return row

    def numbered(self, column: str, cell: Any, place: str) -> Any:
        names = self._names.get(column)
        if names is None or tuple(names) == self.classes:
            return cell
        if isinstance(cell, list):
            return [self.numbered(column, each, place) for each in cell]
        return self.class_of(names[cell], place) if isinstance(cell, int) and 0 <= cell < len(names) else cell


def _class_names(features: Any, column: str) -> list[str]:
    """What the numbers of a column stand for, also of lists and inside another column; empty where nothing says it."""
    found = features
    for part in [column] if column in features else column.split("."):
        found = _inside_lists(found)
        found = found.get(part) if isinstance(found, Mapping) else None
    found = _inside_lists(found)
    return list(found.names) if hasattr(found, "int2str") else []


def _inside_lists(feature: Any) -> Any:
    while hasattr(feature, "feature"):
        feature = feature.feature
    return feature


def _opened(path: Path, split: str | None) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(
            "reading it needs the package datasets", where=str(path), fix='pip install "edgewright[datasets]"'
        ) from None
    require_folder(path)
    try:
        stored = datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged file fails in pyarrow, json or datasets
        problem = f"is no saved data set: {first_line(error)}"
        raise DataError(problem, where=str(path), fix="write it with dataset.save_to_disk(path)") from None
    if isinstance(stored, datasets.DatasetDict):
        if split not in stored:
            missing = "holds several data sets" if split is None else f"holds no data set {split!r}"
            hint = did_you_mean(split or "", stored)
            raise DataError(f"{missing}; {hint}", where=str(path), fix="name one of them: split: …")
        stored = stored[split]
    elif split is not None:
        raise DataError("holds one data set, and no splits", where=str(path), fix="remove split")
    return stored
