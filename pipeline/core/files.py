"""Files and folders that appear under their final name complete, or not at all, and files that show damage."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core import DataError, EdgewrightError, OutputError, did_you_mean

logger = logging.getLogger(__name__)

UNFINISHED = ".edgewright-writing-"
"""Prefix of folders in which files are written before they get their names; a killed process leaves its last one."""
DIGEST_BYTES = hashlib.sha256().digest_size


_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


CORRECT = "correct it; paths are relative to the recipe"


def require_folder(path: Path) -> None:
    """Refuse a path of a recipe that is no folder of samples.

    Raises:
        DataError: Says what is there instead.
    """
    if not path.is_dir():
        problem = "is a file, not a folder" if path.exists() else "no such folder"
        raise DataError(problem, where=str(path), fix=CORRECT)


def require_file(path: Path, refusal: type[EdgewrightError]) -> None:
    """Refuse a path of a recipe that names no file with content of its own.

    Raises:
        EdgewrightError: Of the class ``refusal``.
    """
    fix = CORRECT
    try:
        if path.is_dir():
            raise refusal("is a folder", where=str(path), fix="name a file in it")
        if path.is_file():
            with path.open("rb") as opened:
                if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
                    raise refusal("is a Git LFS pointer to a file", where=str(path), fix="run 'git lfs pull'")
            return
        beside = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    except OSError as error:
        raise refusal(f"cannot be read: {error.strerror}", where=str(path), fix=fix) from None
    hint = did_you_mean(path.name, beside)
    near = f"; {hint}" if hint.startswith("did") else ""
    problem = "is no regular file" if path.exists() else f"no such file{near}"
    raise refusal(problem, where=str(path), fix=fix)


def read_small(path: Path, most_bytes: int) -> bytes:
    """The content of a file that is small: a pipe would be waited for, and a device may have no end.

    Raises:
        OSError: It cannot be read, is no regular file, or is larger.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is no regular file")
    with path.open("rb") as opened:
        content = opened.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it has more than {most_bytes >> 20} MiB")
    return content


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What is done inside writes to ``path``; where the system refuses, one error names the file and the cause.

    Raises:
        OutputError: In place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot be written: {error.strerror or error}",
            where=str(path),
            fix="free space or choose another folder; then run the same command again, which goes on from here",
        ) from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A place to write a file or a folder to, which becomes ``path`` when the block ends without an error.

    The place has the final name, in a temporary folder beside ``path``: readers of ``path`` see either what was there
    before or all of what is new, and a failure leaves nothing behind. Other files that the block writes into the
    temporary folder are moved next to ``path``, ahead of it.

    Raises:
        OutputError: The folder of ``path`` is missing or cannot be written to, or the disk is full.
    """
    with writing(path), tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=path.parent) as folder:
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
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one go; see `atomic_write`."""
    with atomic_write(path) as staged:
        staged.write_bytes(content)


def write_sealed(path: Path, content: bytes) -> None:
    """Write a file that `read_sealed` recognizes as complete and unchanged."""
    write_bytes(path, hashlib.sha256(content).digest() + content)


def read_sealed(path: Path) -> bytes | None:
    """What `write_sealed` wrote; None where there is no such file, or where it was damaged and is now set aside."""
    if not path.is_file():
        return None
    stored = path.read_bytes()
    digest, content = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() == digest:
        return content
    logger.warning("%s is damaged: set aside as %s", path, set_aside(path))
    return None


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder, so that it is neither used nor lost; returns its new path."""
    number = 1
    while (aside := path.with_name(f".damaged-{path.name.lstrip('.')}-{number}")).exists():
        number += 1
    return path.rename(aside)


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
