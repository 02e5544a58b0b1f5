"""Files and folders that appear under their final name complete, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A place to write a file or a folder to, which becomes ``path`` when the block ends without an error.

    The place has the final name, in a temporary folder beside ``path``: readers of ``path`` see either what was there
    before or all of what is new, and a failure leaves nothing behind. Other files that the block writes into the
    temporary folder are moved next to ``path``, ahead of it.

    Raises:
        OSError: The folder of ``path`` is missing or cannot be written to, or the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        staged = Path(folder) / path.name
        yield staged
        sync(Path(folder))
        moved: list[Path] = []
        try:
            for other in sorted(entry for entry in Path(folder).iterdir() if entry != staged):
                moved.append(other.replace(path.with_name(other.name)))
            _put(staged, path)
        except OSError:
            for file in moved:
                file.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8 with unchanged line ends; see `atomic_write`."""
    with atomic_write(path) as staged:
        staged.write_text(text, encoding="utf-8", newline="\n")


def sync(path: Path) -> None:
    """Return when the content of a file, or of all files in a folder, is on the disk."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def _put(staged: Path, path: Path) -> None:
    """Rename. A folder takes the place of another only once that is out of the way; a file never takes a folder's."""
    retired = staged.with_name(f"{path.name}.replaced")
    if staged.is_dir() and path.exists():
        path.rename(retired)
    try:
        staged.replace(path)
    except OSError:
        if retired.exists():
            retired.rename(path)
        raise
