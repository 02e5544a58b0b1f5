"""The log of a training: a CSV file that grows while it runs, for a spreadsheet, pandas or ``tail -f``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import IO, Any, Self

from pipeline.core.files import writing


class TrainingLog:
    """Rows of ``epoch, step, loss, learning_rate, metric``.

    A step has its own loss and learning rate. An epoch's row comes after its steps; its step and rate are empty, its
    loss is their mean, and its metric is that on the held-out samples, where there are any.

    Args:
        path: Where to write; nothing is written where it is None.
        keep_bytes: How much of an earlier log is kept: the part that the resumed state covers.
    """

    columns = ("epoch", "step", "loss", "learning_rate", "metric")

    def __init__(self, path: Path | None, *, keep_bytes: int = 0) -> None:
        self._file: IO[str] | None = None
        if path is None:
            return
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._file = path.open("r+", newline="", buffering=1)  # a row is on disk as soon as it is written
            self._file.seek(min(keep_bytes, path.stat().st_size))
            self._file.truncate()
        if self._file.tell() == 0:
            self._row(self.columns)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return 0 if self._file is None else self._file.tell()

    def write(
        self, epoch: int, step: int | None, loss: float, learning_rate: float | None = None, metric: float | None = None
    ) -> None:
        """Add a step, or an epoch where ``step`` is None."""
        self._row((epoch, step, f"{loss:.6g}", learning_rate and f"{learning_rate:.6g}", metric))

    def _row(self, values: tuple[Any, ...]) -> None:
        if self._file is not None:
            with writing(Path(self._file.name)):
                csv.writer(self._file, lineterminator="\n").writerow(values)
