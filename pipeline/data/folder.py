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
    """Images under one subfolder per class; classes are numbered in sorted order. Decoded on demand."""

    def __init__(self, path: Path, channels: int) -> None:
        self.where = str(path)
        self.labelled = True
        if not path.is_dir():
            raise DataError("no such folder", where=self.where, fix="paths are relative to the recipe")
        self.classes = tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir()))
        self._mode: Literal["L", "RGB"] = "L" if channels == 1 else "RGB"
        self._files = [
            (file, label)
            for label, name in enumerate(self.classes)
            for file in sorted((path / name).iterdir())
            if file.suffix.lower() in EXTENSIONS
        ]

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
