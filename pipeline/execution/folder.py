"""The run's folder: what a run wrote there is listed, and nothing else is ever removed or overwritten."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.core import OutputError
from pipeline.core.files import UNFINISHED, write_text, writing

MARK = ".edgewright.json"
"""Lists, in a run's folder, the files and folders that runs have written there."""

_RELEASED_WITHIN_S = 2.0
"""How long a run that was killed a moment ago may still hold its lock: its processes end one after the other."""


@contextmanager
def claimed(folder: Path, entries: Iterable[str]) -> Iterator[None]:
    """The folder for the duration of a run, which may write the entries of these names and no others.

    Raises:
        OutputError: The folder cannot be written to, holds an entry of such a name that no run has written, or another
            run is writing to it.
    """
    wanted = sorted(entries)
    _require_own(folder, wanted)  # before anything is written there
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass  # a folder may exist and refuse files
    lock = FileLock(folder / ".edgewright.lock")
    try:
        lock.acquire(timeout=_RELEASED_WITHIN_S)
    except Timeout:
        raise OutputError(
            "another run is writing to it", where=str(folder), fix="wait for it, or give another --out"
        ) from None
    try:
        made = _require_own(folder, wanted)
        for left in folder.glob(f"{UNFINISHED}*"):  # by a run that was killed: this one alone writes here now
            shutil.rmtree(left, ignore_errors=True)
        write_text(folder / MARK, json.dumps({"entries": sorted({*made, *wanted})}, indent=1) + "\n")
        yield
    finally:
        lock.release()


def _require_own(folder: Path, wanted: Iterable[str]) -> set[str]:
    """The entries that runs have written; refuses a folder in which something else has one of the wanted names."""
    with writing(folder):
        made = _made(folder)
        for name in wanted:
            entry = folder / name
            if entry.is_symlink() or (entry.exists() and name not in made):
                what = "is a link" if entry.is_symlink() else "was not written by a run"
                raise OutputError(
                    f"{what}, and stays as it is", where=str(entry), fix="give another --out, or move it away"
                )
    return made


def require_space(folder: Path, needed_bytes: int) -> None:
    """Refuse a folder that cannot be made, and a disk that has less space than an estimate of what a run writes.

    Args:
        folder: It may not exist yet.

    Raises:
        OutputError: Says what is in its place, or how much is needed and how much there is.
    """
    with writing(folder):
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{existing} is not a folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"there is no permission to write into {existing}")
        usage = shutil.disk_usage(existing)
    if usage.total and usage.free < needed_bytes:  # a file system of the kernel's has no size
        raise OutputError(
            f"about {needed_bytes / 1e6:.0f} MB are needed, and {usage.free / 1e6:.0f} MB are free",
            where=str(folder),
            fix="free space, or give another --out and --store",
        )


def _made(folder: Path) -> set[str]:
    """The entries that runs have written; none where the list is missing or unreadable."""
    try:
        listed = json.loads((folder / MARK).read_bytes())["entries"]
        return {name for name in listed if isinstance(name, str) and os.sep not in name}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
