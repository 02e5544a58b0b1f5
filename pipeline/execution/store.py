"""The stage store: finished results under a key of everything they depend on, so that a killed run goes on.

An entry appears under its final name only when it is complete (written aside, then renamed). It carries a hash of each
of its files, which is checked whenever it is used: a damaged entry is set aside and computed again. Reading one never
unpickles: weights are safetensors, programs are ``torch.export`` archives, the rest is JSON.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.core.files import set_aside, sync, writing
from pipeline.progress import console

logger = logging.getLogger(__name__)

CONTENTS = "contents.json"
"""In each entry: the SHA-256 of every other file, by its path in the entry."""


class Store:
    """A folder of results. Several processes may share it: one computes an entry, and the others wait and take it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def under_way(self, key: str) -> Path:
        """Where a stage that takes long may keep its state, and files beside it, until its result is kept."""
        return self._folder / f".under-way-{key}" / "state"

    def folder_of(self, key: str) -> Path:
        """Where the result of that key is, once it is finished."""
        return self._folder / key

    def holds(self, key: str) -> bool:
        """Whether the result of that key is finished, and as it was written; a damaged one is set aside."""
        folder = self.folder_of(key)
        found = folder.is_dir()
        if found and not _is_intact(folder):
            aside = set_aside(folder)
            console.print(f"  a stored result is damaged: set aside as {aside}, and computed again")
            found = False
        logger.debug("%s %s", "hit" if found else "miss", key)
        return found

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Keep other processes from computing the result of that key, or wait until they have."""
        lock = FileLock(self._made() / f".lock-{key}")  # stays: to remove a lock that others wait for is a race
        try:
            lock.acquire(timeout=0)
        except Timeout:
            console.print("  another run is computing this; waiting for its result")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def entry(self, key: str, compute: Callable[[Path], None]) -> tuple[Path, bool]:
        """The folder of a result, computed where it is not there yet, and whether it was.

        Args:
            key: From `pipeline.execution.keys`.
            compute: Writes the result's files into the folder it is given.
        """
        with self.locked(key):
            found = self.holds(key)
            if not found:
                with self.unfinished(key) as folder, self._state_of(key):
                    compute(folder)
                    self.keep(folder, key)
        return self.folder_of(key), found

    @contextmanager
    def unfinished(self, key: str) -> Iterator[Path]:
        """An empty folder for the result of a locked key; what has not been kept when the block ends is removed."""
        folder = self._made() / f".unfinished-{key}"
        with writing(folder):
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
            folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, folder: Path, key: str) -> None:
        """Make a finished folder the result of that key; where another process was first, its result stays."""
        with writing(self.folder_of(key)):
            (folder / CONTENTS).write_text(json.dumps(_hashes(folder), indent=1))
            sync(folder)
            try:
                folder.rename(self.folder_of(key))
            except OSError:
                if not self.folder_of(key).is_dir():
                    raise
                logger.debug("another process finished %s first", key)

    @contextmanager
    def _state_of(self, key: str) -> Iterator[None]:
        """The folder of `under_way`: it outlives a failure or a kill if something is in it, and never a result."""
        folder = self.under_way(key).parent
        with writing(folder):
            folder.mkdir(exist_ok=True)
        try:
            yield
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _made(self) -> Path:
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file != folder / CONTENTS
    }


def _is_intact(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / CONTENTS).read_bytes()) == _hashes(folder))
    except (OSError, ValueError):
        return False
