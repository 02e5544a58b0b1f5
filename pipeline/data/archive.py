"""Arrays in an npz, under any names."""

from __future__ import annotations

import math
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from pipeline.core import DataError
from pipeline.core.arrays import Array
from pipeline.core.files import atomic_write

MAX_NAME_BYTES = 200


def write_archive(path: Path, arrays: Sequence[tuple[str, Array]]) -> dict[str, Array]:
    """Write arrays as `numpy.savez` does, which itself takes no array called ``file``.

    Returns:
        The arrays by the names that they got. A name that two arrays have, or that cannot stand in an archive, gives
        way to the position: ``output_0``.

    Raises:
        OutputError: The file cannot be written.
    """
    written = dict(zip(archive_names([name for name, _ in arrays]), (array for _, array in arrays), strict=True))
    with atomic_write(path) as staged, zipfile.ZipFile(staged, "w") as archive:
        for name, array in written.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return written


def stated_arrays(archive: NpzFile, names: Sequence[str], where: str) -> dict[str, tuple[tuple[int, ...], int]]:
    """The shapes and bytes that arrays of an npz state in their first lines; nothing else is read.

    Raises:
        DataError: An array states more than it holds, and would take that much memory before anything is read.
        ValueError: It is not in NumPy's format.
    """
    found: dict[str, tuple[tuple[int, ...], int]] = {}
    assert archive.zip is not None  # it is open
    for name in names:
        member = f"{name}.npy" if f"{name}.npy" in archive.zip.namelist() else name
        held = archive.zip.getinfo(member).file_size
        with archive.zip.open(member) as opened:
            read = _HEADERS.get(opened.read(np.lib.format.MAGIC_LEN))
            if read is None:  # no array, or one of named columns, of which NumPy itself reads as much as there is
                continue
            shape, _, dtype = read(opened)
        nbytes = 0 if dtype.hasobject else math.prod(shape) * dtype.itemsize
        if nbytes > held or min(shape, default=0) < 0:
            raise DataError(
                f"{name!r} states {list(shape)} of {dtype}, which is more than it holds",
                where=where,
                fix="write it with numpy.savez",
            )
        found[name] = shape, held
    return found


_HEADERS = {
    np.lib.format.magic(1, 0): np.lib.format.read_array_header_1_0,
    np.lib.format.magic(2, 0): np.lib.format.read_array_header_2_0,
}


def stored_bytes(path: Path, names: Sequence[str] | None = None) -> int:
    """Bytes that arrays of an npz take in memory: all, or those of these names; 0 where it cannot be read."""
    if not path.is_file():  # a pipe would be waited for
        return 0
    try:
        with zipfile.ZipFile(path) as opened:
            sizes = {member.filename.removesuffix(".npy"): member.file_size for member in opened.infolist()}
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return 0  # whoever reads its arrays says what is wrong with the file
    return sum(size for name, size in sizes.items() if names is None or name in names)


def archive_names(names: Sequence[str]) -> list[str]:
    """Names that are unique, and that lead out of no folder where the archive is unpacked.

    >>> archive_names(["file", "../../x", "serving/logits:0", "", "file"])
    ['output_0', 'output_1', 'serving/logits:0', 'output_3', 'output_4']
    """
    counts = Counter(names)
    taken = {name for name in names if counts[name] == 1 and _can_stand(name)}
    result = []
    for position, name in enumerate(names):
        if name not in taken:
            name = f"output_{position}"
            while name in taken:
                name += "_"
        result.append(name)
    return result


def _can_stand(name: str) -> bool:
    """Whether a name is a relative path of printable characters that stays below its folder.

    NumPy takes ``x.npy`` for ``x``.
    """
    return (
        name.isprintable()
        and 0 < len(name.encode()) <= MAX_NAME_BYTES
        and not name.endswith(".npy")
        and not re.search(r"\\|^[A-Za-z]:", name)
        and not {"", ".", ".."} & set(name.split("/"))
    )
