"""The stage store: finished results under a key of everything they depend on, so that a killed run goes on.

An entry appears under its final name only when it is complete (written aside, then renamed), and reading one never
unpickles: weights are safetensors, programs are ``torch.export`` archives, the rest is JSON.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.files import sync

logger = logging.getLogger(__name__)


class Store:
    """A folder of results. Several processes may share it: the first to finish an entry wins."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def under_way(self, key: str) -> Path:
        """Where a stage that takes long may keep its state until the result of that key is finished."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f".under-way-{key}"

    def folder_of(self, key: str) -> Path:
        """Where the result of that key is, once it is finished."""
        return self._folder / key

    def holds(self, key: str) -> bool:
        """Whether the result of that key is finished."""
        found = self.folder_of(key).is_dir()
        logger.debug("%s %s", "hit" if found else "miss", key)
        return found

    def entry(self, key: str, compute: Callable[[Path], None]) -> tuple[Path, bool]:
        """The folder of a result, computed where it is not there yet, and whether it was.

        Args:
            key: From `pipeline.execution.keys`.
            compute: Writes the result's files into the folder it is given.
        """
        found = self.holds(key)
        if not found:
            with self.unfinished() as folder:
                compute(folder)
                self.keep(folder, key)
        return self.folder_of(key), found

    @contextmanager
    def unfinished(self) -> Iterator[Path]:
        """An empty folder for a result; what has not been kept when the block ends is removed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=self._folder) as scratch:
            folder = Path(scratch) / "entry"
            folder.mkdir()
            yield folder

    def keep(self, folder: Path, key: str) -> None:
        """Make a finished folder the result of that key; where another process was first, its result stays."""
        sync(folder)
        try:
            folder.rename(self.folder_of(key))
        except OSError:
            if not self.folder_of(key).is_dir():
                raise
            logger.debug("another process finished %s first", key)
