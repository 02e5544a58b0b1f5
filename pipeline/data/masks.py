"""Samples in a folder of images and a folder of masks, paired by their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import DataError
from pipeline.core.arrays import Array
from pipeline.core.files import require_folder
from pipeline.data.folder import Found, mode_of, stacked
from pipeline.data.images import read_image, read_mask
from pipeline.data.places import IGNORED, Kind
from pipeline.data.samples import Source


class MaskSource(Source):
    """Images, and for each a mask of class values of the same path and name but for its extension.

    Names that begin with a dot are passed over, and said.

    Args:
        ignored: Values of masks that count for nothing, beside 255.

    Raises:
        DataError: There are none, or an image or a mask has no partner, or has two.
    """

    kind: Kind = "mask"
    one_by_one = True

    def __init__(self, images: Path, masks: Path, channels: int, ignored: Sequence[int] = ()) -> None:
        self.where, self.labels_where, self.labelled = str(images), str(masks), True
        require_folder(images)
        require_folder(masks)
        below = {folder: Found.below(folder) for folder in (images, masks)}
        found, partners = below[images].by_name(images), below[masks].by_name(masks)
        self.notes = (*below[images].notes(images), *below[masks].notes(masks))
        _require_partners(found, partners, "mask", masks)
        _require_partners(partners, found, "image", images)
        self._pairs = [(file, partners[name]) for name, file in found.items()]
        self._mode, self._ignored = mode_of(channels), tuple(ignored)

    def __len__(self) -> int:
        return len(self._pairs)

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Any]:
        images, masks = [], []
        for index in indices:
            file, partner = self._pairs[index]
            image = read_image(file, self._mode, upright=self.upright)
            mask = read_mask(partner, upright=self.upright)
            if image.shape[:2] != mask.shape:
                (height, width), (rows, columns) = image.shape[:2], mask.shape
                raise DataError(
                    f"is {columns} x {rows} pixels, and its image {file} is {width} x {height}",
                    where=str(partner),
                    fix="make one mask for each image, of its size",
                )
            images.append(image)
            masks.append(np.where(np.isin(mask, self._ignored), IGNORED, mask) if self._ignored else mask)
        return (stacked(images),), masks

    def input_place(self, index: int) -> str:
        return str(self._pairs[index][0])

    def place_of(self, index: int) -> str:
        return str(self._pairs[index][1])


def _require_partners(found: dict[str, Path], partners: dict[str, Path], what: str, folder: Path) -> None:
    alone = [file for name, file in found.items() if name not in partners]
    if alone:
        more = f", nor have {len(alone) - 1} others" if len(alone) > 1 else ""
        raise DataError(
            f"has no {what} of its name in {folder}{more}",
            where=str(alone[0]),
            fix=f"add the {what}, or remove the file",
        )
