"""Samples with boxes in COCO's format (https://cocodataset.org/#format-data): a folder of images, and a JSON file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from pipeline.core import DataError, did_you_mean
from pipeline.core.arrays import Array
from pipeline.core.files import require_file
from pipeline.data.folder import mode_of, require_folder, stacked
from pipeline.data.images import read_image
from pipeline.data.places import Kind
from pipeline.data.samples import Source


class _Image(BaseModel):
    id: int
    file_name: str = Field(min_length=1)
    width: int = Field(gt=0)
    height: int = Field(gt=0)


class _Annotation(BaseModel):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: bool = False


class _Category(BaseModel):
    id: int
    name: str


class _File(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


_EDGE = 1.0
"""Pixels that a box may reach beyond its image: annotations are rounded. They are cut off."""


class CocoSource(Source):
    """The images of a COCO file with their boxes, also those without any; a box is stored as x, y, width, height.

    Args:
        classes: The names of classes 0, 1, …; by default the file's categories in the order of their ids.

    Raises:
        DataError: The file is no COCO file, an id is there twice or leads nowhere, or a box is not in its image.
    """

    kind: Kind = "boxes"
    one_by_one = True

    def __init__(self, path: Path, images: Path, channels: int, classes: Sequence[str] = ()) -> None:
        self.where, self.labels_where, self.labelled = str(path), f"{path}: annotations", True
        require_file(path, DataError)
        require_folder(images)
        stored = _parsed(path)
        self.classes = tuple(classes) or tuple(each.name for each in sorted(stored.categories, key=lambda one: one.id))
        self._mode, self._folder = mode_of(channels), images
        self._images = stored.images
        numbers = _numbers(stored.categories, self.classes, self.where)
        self._boxes = self._grouped(stored, numbers)

    def _grouped(self, stored: _File, numbers: dict[int, int]) -> list[dict[str, Array]]:
        """For each image its boxes as corners, their classes, and which stand for a crowd."""
        place = {image.id: index for index, image in enumerate(stored.images)}
        rows: list[list[tuple[float, ...]]] = [[] for _ in stored.images]
        names = {category.id: category.name for category in stored.categories}
        for position, each in enumerate(stored.annotations):
            where = f"{self.where}: annotations[{position}] (id {each.id})"
            if each.image_id not in place:
                problem = f"belongs to image {each.image_id}, which is not among the images"
                raise DataError(problem, where=f"{where}.image_id", fix="add the image, or remove the annotation")
            if each.category_id not in numbers:
                name = names.get(each.category_id)
                problem = f"has category {each.category_id}, which is not among the categories"
                if name is not None:
                    problem = f"has the category {name!r}; {did_you_mean(name, self.classes)}"
                fix = "add the category" if name is None else "name every class in model.classes"
                raise DataError(problem, where=f"{where}.category_id", fix=fix)
            image = stored.images[place[each.image_id]]
            corners = _corners(each.bbox, image, where)
            rows[place[each.image_id]].append((*corners, numbers[each.category_id], each.iscrowd))
        return [_label(np.array(found, np.float32).reshape(-1, 6)) for found in rows]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Any]:
        return (stacked([self._image(index) for index in indices]),), [self._boxes[index] for index in indices]

    def _image(self, index: int) -> Array:
        entry, where = self._images[index], self.input_place(index)
        pixels = read_image(self._folder / entry.file_name, self._mode, where, upright=self.upright)
        if pixels.shape[:2] != (entry.height, entry.width):
            height, width = pixels.shape[:2]
            raise DataError(
                f"is {width} x {height} pixels, and the file says {entry.width} x {entry.height}",
                where=where,
                fix="give the images that the boxes were drawn on; those of a camera are turned as their EXIF data say",
            )
        return pixels

    def input_place(self, index: int) -> str:
        entry = self._images[index]
        return f"{self.where}: images (id {entry.id}): {self._folder / entry.file_name}"

    def place_of(self, index: int) -> str:
        entry = self._images[index]
        return f"{self.where}: annotations of image {entry.id} ({entry.file_name})"


def _parsed(path: Path) -> _File:
    try:
        stored = _File.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        raise DataError(
            f"{first['msg'][0].lower()}{first['msg'][1:]}",
            where=f"{path}: {field}" if field else str(path),
            fix="write images, annotations and categories as https://cocodataset.org/#format-data says",
        ) from None
    for name, entries in (
        ("images", stored.images),
        ("annotations", stored.annotations),
        ("categories", stored.categories),
    ):
        _require_once(Counter(entry.id for entry in entries), f"{path}: {name}", "id")
    _require_once(Counter(entry.file_name for entry in stored.images), f"{path}: images", "file_name")
    _require_once(Counter(entry.name for entry in stored.categories), f"{path}: categories", "name")
    return stored


def _require_once(counts: Counter[Any], where: str, field: str) -> None:
    twice = next((value for value, count in counts.items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{field} {twice!r} is there {counts[twice]} times", where=where, fix="keep one of them")


def _numbers(categories: list[_Category], classes: tuple[str, ...], where: str) -> dict[int, int]:
    """The class number of each category id; categories that the model does not know have none."""
    if not categories:
        raise DataError("names no categories", where=f"{where}: categories", fix="add them")
    return {category.id: classes.index(category.name) for category in categories if category.name in classes}


def _corners(box: tuple[float, float, float, float], image: _Image, where: str) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of a box x, y, width, height, cut at the edges of its image."""
    left, top, width, height = box
    problem = None
    if not all(map(np.isfinite, box)):
        problem = "is not finite"
    elif width <= 0 or height <= 0:
        problem = "is empty or inverted: width and height must be positive"
    elif left >= image.width or top >= image.height or left + width <= 0 or top + height <= 0:
        problem = f"is outside its image {image.file_name} of {image.width} x {image.height}"
    elif min(left, top) < -_EDGE or left + width > image.width + _EDGE or top + height > image.height + _EDGE:
        problem = f"reaches beyond its image {image.file_name} of {image.width} x {image.height}"
    if problem is not None:
        fix = "correct the box [x, y, width, height], or remove the annotation"
        raise DataError(f"{list(box)} {problem}", where=f"{where}.bbox", fix=fix)
    right, bottom = min(left + width, image.width), min(top + height, image.height)
    return max(left, 0.0), max(top, 0.0), right, bottom


def _label(rows: Array) -> dict[str, Array]:
    return {"boxes": rows[:, :4], "labels": rows[:, 4].astype(np.int64), "crowd": rows[:, 5] > 0}
