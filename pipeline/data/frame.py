"""Samples in the rows of a pandas DataFrame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core import DataError, TensorSpec
from pipeline.data.dataset import LABEL_NAMES, unread
from pipeline.data.rows import RowSource


class FrameSource(RowSource):
    """The rows of a DataFrame, whose cells are as those of a table.

    Args:
        inputs: The column of each input. By default the columns of the inputs' names, else those that are no labels:
            one, or as many numbers as the only input ``(F,)`` takes.
        labels: The column of the labels, or of each part of them; None means one of `LABEL_NAMES`, where it is there.
        folder: What relative paths in cells start from.

    Raises:
        DataError: There is no such column, or it is not clear which are meant.
    """

    def __init__(
        self,
        frame: Any,
        where: str,
        specs: Sequence[TensorSpec],
        inputs: Sequence[str] = (),
        labels: str | Mapping[str, str] | None = None,
        classes: Sequence[str] = (),
        folder: Path = Path(),
    ) -> None:
        self._frame, self._columns = frame, [str(name) for name in frame.columns]
        labels = labels or next((name for name in LABEL_NAMES if name in self._columns), None)
        named = {labels} if isinstance(labels, str) else set((labels or {}).values())
        features = [name for name in self._columns if name not in named]
        self._features: list[str] = []
        names = [spec.name for spec in specs]
        if not inputs and set(names) <= set(self._columns):
            inputs = names
        elif not inputs and len(specs) == 1 and len(features) == 1:
            inputs = features
        elif not inputs and len(specs) == 1 and specs[0].shape == (len(features),):
            self._features, inputs = features, names
        elif not inputs:
            raise DataError(
                f"has the columns {', '.join(self._columns[:20])}, and which are {', '.join(names)} is not clear",
                where=where,
                fix="name one for each input in the recipe: inputs: [...]",
            )
        columns = [*self._columns, *names] if self._features else self._columns
        super().__init__(where, columns, specs=specs, inputs=inputs, labels=labels, classes=classes, folder=folder)
        if labels is None and len(features) > len(inputs) and not self._features:
            self.notes = unread(where, self._columns, None)

    def __len__(self) -> int:
        return len(self._frame)

    def row_name(self, index: int) -> str:
        return f"{self.where}: row {index}"

    def row(self, index: int) -> Mapping[str, Any]:
        cells = {name: self._frame.iat[index, place] for place, name in enumerate(self._columns)}
        together = {self._inputs[0]: [cells[name] for name in self._features]} if self._features else {}
        return {**cells, **together}


def is_frame(dataset: Any) -> bool:
    """Whether an object is a pandas DataFrame; pandas is not imported for it."""
    of_pandas = type(dataset).__module__.partition(".")[0] == "pandas"
    return of_pandas and hasattr(dataset, "iat") and hasattr(dataset, "columns")
