"""Samples in an image folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.core import DataError
from pipeline.core.arrays import Array
from pipeline.data.images import EXTENSIONS, read_image
from pipeline.data.samples import Source

_ADD = "correct it; paths are relative to the recipe"


class FolderSource(Source):
    """Images under one subfolder per class; classes are numbered in sorted order. Decoded on demand.

    Names that begin with a dot are passed over.
    """

    def __init__(self, path: Path, channels: int) -> None:
        self.where = self.labels_where = str(path)
        self.labelled, self.one_by_one = True, True
        require_folder(path)
        try:
            folders = sorted(entry for entry in _visible(path) if entry.is_dir())
            images = {folder.name: _images(folder) for folder in folders}
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", where=str(error.filename), fix="allow it") from None
        if not folders:
            found = ", ".join(entry.name for entry in _visible(path)[:3]) or "nothing"
            raise DataError(
                f"holds {found}, and no class folders", where=self.where, fix="make one subfolder per class"
            )
        empty = next((name for name, files in images.items() if not files), None)
        if empty is not None:
            found = ", ".join(entry.name for entry in _visible(path / empty)[:3]) or "nothing"
            raise DataError(
                f"class folder {empty!r} holds {found}, and no image ({', '.join(sorted(EXTENSIONS))})",
                where=self.where,
                fix="add images, or remove the folder: classes are numbered in the order of their folders",
            )
        self.classes = tuple(images)
        self._mode = mode_of(channels)
        self._files = [(file, label) for label, files in enumerate(images.values()) for file in files]

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Array | None]:
        images = [read_image(self._files[index][0], self._mode) for index in indices]
        return (stacked(images),), np.asarray([self._files[index][1] for index in indices])

    def input_place(self, index: int) -> str:
        return str(self._files[index][0])


def require_folder(path: Path) -> None:
    """Refuse a path of a recipe that is no folder."""
    if not path.is_dir():
        problem = "is a file, not a folder" if path.exists() else "no such folder"
        raise DataError(problem, where=str(path), fix=_ADD)


def mode_of(channels: int) -> Literal["L", "RGB"]:
    """How images are decoded for an input of so many channels."""
    return "L" if channels == 1 else "RGB"


def stacked(images: Sequence[Array]) -> Array:
    """Images as one array ``(N,)`` of arrays: sizes may differ until they are resized."""
    found = np.empty(len(images), dtype=object)
    found[:] = images
    return found


def _visible(folder: Path) -> list[Path]:
    """Entries whose names do not begin with a dot, as those of file managers and notebooks do."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return [file for file in _visible(folder) if file.suffix.lower() in EXTENSIONS]
