"""Samples in an image folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.core import DataError
from pipeline.core.arrays import Array
from pipeline.data.images import EXTENSIONS, read_image


class FolderSource:
    """Images under one subfolder per class; classes are numbered in sorted order. Decoded on demand.

    Names that begin with a dot are passed over.
    """

    def __init__(self, path: Path, channels: int) -> None:
        self.where = self.labels_where = str(path)
        self.labelled = True
        if not path.is_dir():
            raise DataError("no such folder", where=self.where, fix="correct it; paths are relative to the recipe")
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
        self._mode: Literal["L", "RGB"] = "L" if channels == 1 else "RGB"
        self._files = [(file, label) for label, files in enumerate(images.values()) for file in files]

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Array | None]:
        images, labels = [], []
        for index in indices:
            file, label = self._files[index]
            images.append(read_image(file, self._mode))
            labels.append(label)
        stacked = np.empty(len(images), dtype=object)  # sizes may differ until they are resized
        stacked[:] = images
        return (stacked,), np.asarray(labels)


def _visible(folder: Path) -> list[Path]:
    """Entries whose names do not begin with a dot, as those of file managers and notebooks do."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return [file for file in _visible(folder) if file.suffix.lower() in EXTENSIONS]
