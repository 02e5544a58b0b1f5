"""Arrays in an npz, under any names."""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

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
