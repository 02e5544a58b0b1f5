"""The stage store: finished results under a key of everything they depend on, so that a killed run goes on.

An entry appears under its final name only when it is complete (written aside, then renamed), and reading one never
unpickles: weights are safetensors, programs are ``torch.export`` archives, the rest is JSON.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
UNRELATED = frozenset({"cli", "execution", "search", "report", "stages"})
"""Parts of the package that no stage builds on; a stage's own sources are hashed by themselves."""


def code_sha256(*paths: Path) -> str:
    """Hash of a stage's own sources (files or packages) and of every module of the pipeline it may build on."""
    shared = [file for file in sorted(PACKAGE.rglob("*.py")) if file.relative_to(PACKAGE).parts[0] not in UNRELATED]
    own = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in (*shared, *own))).hexdigest()


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
        return self.folder_of(key).is_dir()

    def entry(self, key: str, compute: Callable[[Path], None]) -> tuple[Path, bool]:
        """The folder of a result, computed where it is not there yet, and whether it was.

        Args:
            key: From `pipeline.models.digest.key_of`.
            compute: Writes the result's files into the folder it is given.
        """
        final = self.folder_of(key)
        if self.holds(key):
            return final, True
        self._folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=self._folder))
        try:
            compute(scratch)
            os.replace(scratch, final)  # noqa: PTH105 - atomic, unlike shutil.move
        except OSError:
            if not final.is_dir():  # another process may have finished the same entry first
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return final, False
