"""The log of a run: one file in its folder, with what each pass changed or left and why."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.files import writing
from pipeline.core.logs import logged_to

LOG, OLDER = "run.log", "run.log.1"
"""The log that runs append to, and what it held before it became large."""
MAX_BYTES = 20_000_000
"""Of one file."""


class _Log(logging.FileHandler):
    """Appends to a file, and stops where it is full."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(logging.Formatter("%(asctime)s %(process)d %(name)s: %(message)s"))
        self._full = False

    def emit(self, record: logging.LogRecord) -> None:
        if self._full:
            return
        super().emit(record)
        if self.stream is not None and os.fstat(self.stream.fileno()).st_size > MAX_BYTES:
            self._full = True
            self.stream.write(f"the log ends here: it has {MAX_BYTES:,} bytes\n")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's own name
        """A log that cannot be written, as on a full disk, does not end a run: what the run itself writes will."""
        del record
        self._full = True


@contextmanager
def run_log(folder: Path) -> Iterator[None]:
    """Write ``run.log`` in a run's folder; the log of earlier runs stays before it, up to a limit."""
    path = folder / LOG
    with writing(path):
        if path.exists() and path.stat().st_size > MAX_BYTES // 2:
            path.replace(folder / OLDER)
        handler = _Log(path)
    try:
        with logged_to(handler):
            yield
    finally:
        handler.close()
