"""Samples in COCO's format (https://cocodataset.org/#format-data): a folder of images, and a JSON file.

It holds objects with their boxes, their outlines, which become masks, or their keypoints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from pipeline.core import DataError, did_you_mean, first_line
from pipeline.core.arrays import Array
from pipeline.core.files import require_file, require_folder
from pipeline.data.folder import mode_of, stacked
from pipeline.data.images import read_image
from pipeline.data.places import IGNORED, Kind
from pipeline.data.samples import Source
from pipeline.data.source import CocoLabels

Box = tuple[float, float, float, float]


class _Image(BaseModel):
    id: int
    file_name: str = Field(min_length=1)
    width: int = Field(gt=0)
    height: int = Field(gt=0)


class _Runs(BaseModel):
    """A mask as the lengths of its runs of zeros and ones, column by column; as text in pycocotools' own code."""

    size: tuple[int, int]
    counts: list[int] | str


class _Annotation(BaseModel):
    id: int
    image_id: int
    category_id: int
    bbox: Box | None = None
    segmentation: list[list[float]] | _Runs | None = None
    keypoints: list[float] | None = None
    iscrowd: bool = False


class _Category(BaseModel):
    id: int
    name: str


class _File(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


BACKGROUND = "background"
"""The class of pixels of no object."""
_KINDS: dict[CocoLabels, Kind] = {"boxes": "boxes", "masks": "mask", "keypoints": "points"}
_EDGE = 1.0
"""Pixels that a box may reach beyond its image: annotations are rounded. They are cut off."""


class CocoSource(Source):
    """The images of a COCO file with their objects, also those without any; a box is stored as x, y, width, height.

    Args:
        classes: The names of classes 0, 1, …; by default the file's categories in the order of their ids, for masks
            behind a class background.
        of: What a label is. In a mask, smaller objects lie on larger ones. Pixels of no object are of the class
            background or, where the model has none, count for nothing. Keypoints are those of one object in an image.

    Raises:
        DataError: The file is no COCO file, an id is there twice or leads nowhere, or an object is not in its image or
            lacks what is asked for.
    """

    one_by_one = True

    def __init__(
        self, path: Path, images: Path, channels: int, classes: Sequence[str] = (), of: CocoLabels = "boxes"
    ) -> None:
        self.kind: Kind = _KINDS[of]
        self.where, self.labels_where, self.labelled = str(path), f"{path}: annotations", True
        require_file(path, DataError)
        require_folder(images)
        stored = _parsed(path)
        own = tuple(each.name for each in sorted(stored.categories, key=lambda one: one.id))
        self.classes = tuple(classes) or ((BACKGROUND, *own) if of == "masks" and BACKGROUND not in own else own)
        self._mode, self._folder = mode_of(channels), images
        self._images = stored.images
        numbers = _numbers(stored.categories, self.classes, self.where)
        objects = self._grouped(stored, numbers)
        self._labels: Sequence[Any]
        if of == "boxes":
            self._labels = [_boxes(image, found) for image, found in zip(stored.images, objects, strict=True)]
        elif of == "masks":
            beside = self.classes.index(BACKGROUND) if BACKGROUND in self.classes else IGNORED
            self._labels = _Masks(stored.images, objects, beside)
        else:
            self.classes = ()
            self._labels = self._keypoints(stored.images, objects)

    def _grouped(self, stored: _File, numbers: dict[int, int]) -> list[list[_Object]]:
        """The objects of each image, with the numbers of their classes."""
        place = {image.id: index for index, image in enumerate(stored.images)}
        found: list[list[_Object]] = [[] for _ in stored.images]
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
            found[place[each.image_id]].append(_Object(each, numbers[each.category_id], where))
        return found

    def _keypoints(self, images: Sequence[_Image], objects: Sequence[Sequence[_Object]]) -> list[Array]:
        """The keypoints ``(K, 3)`` of the one object in each image; none are labelled where there is no object."""
        count, found = 0, []
        for image, others in zip(images, objects, strict=True):
            marked = [each for each in others if each.stored.keypoints and not each.stored.iscrowd]
            if len(marked) > 1:
                problem = f"has {len(marked)} objects with keypoints, and the task keypoints finds one in an image"
                where = f"{self.where}: images (id {image.id})"
                raise DataError(problem, where=where, fix="cut the images so that each shows one object")
            points = _points(marked[0], count) if marked else None
            count = count if points is None else len(points)
            found.append(points)
        if not count:
            raise DataError("has no keypoints", where=self.labels_where, fix="name another file, or labels: boxes")
        return [np.zeros((count, 3)) if points is None else points for points in found]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Any]:
        return (stacked([self._image(index) for index in indices]),), [self._labels[index] for index in indices]

    def _image(self, index: int) -> Array:
        entry, where = self._images[index], self.input_place(index)
        pixels = read_image(self._folder / entry.file_name, self._mode, where, upright=self.upright)
        if pixels.shape[:2] != (entry.height, entry.width):
            height, width = pixels.shape[:2]
            raise DataError(
                f"is {width} x {height} pixels, and the file says {entry.width} x {entry.height}",
                where=where,
                fix="give the images that the objects were marked on; those of a camera are turned as their EXIF data "
                "say, unless data.preprocessing.exif is false",
            )
        return pixels

    def input_place(self, index: int) -> str:
        entry = self._images[index]
        return f"{self.where}: images (id {entry.id}): {self._folder / entry.file_name}"

    def place_of(self, index: int) -> str:
        entry = self._images[index]
        return f"{self.where}: annotations of image {entry.id} ({entry.file_name})"


class _Object(NamedTuple):
    """An annotation, the number of its class, and its place in the file."""

    stored: _Annotation
    number: int
    where: str


class _Masks(Sequence[Array]):
    """For each image the class of each pixel ``(H, W) uint8``, drawn when it is asked for."""

    def __init__(self, images: Sequence[_Image], objects: Sequence[Sequence[_Object]], beside: int) -> None:
        self._images, self._objects, self._beside = images, objects, beside

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        image = self._images[index]
        regions = [(_region(each, image), each.number) for each in self._objects[index]]
        found = np.full((image.height, image.width), self._beside, np.uint8)
        for region, number in sorted(regions, key=lambda one: -int(one[0].sum())):
            found[region] = number
        return found


def _region(found: _Object, image: _Image) -> Array:
    """The pixels of an object ``(H, W) bool``."""
    from pycocotools import mask

    where, outline, size = f"{found.where}.segmentation", found.stored.segmentation, (image.height, image.width)
    if not outline:
        fix = "add it: [[x1, y1, x2, y2, x3, y3, …]]; or remove the annotation"
        raise DataError("has no outline", where=where, fix=fix)
    problem = _odd_polygon(outline, image) if isinstance(outline, list) else _odd_runs(outline, size)
    if problem is None:
        try:
            if isinstance(outline, list):
                coded = mask.merge(mask.frPyObjects(outline, *size))
            elif isinstance(outline.counts, str):
                coded = {"size": list(size), "counts": outline.counts.encode()}
            else:
                coded = mask.frPyObjects({"size": list(size), "counts": outline.counts}, *size)
            return np.asarray(mask.decode(coded)) > 0
        except Exception as error:  # pycocotools fails in its own ways
            problem = f"cannot be read: {first_line(error)}"
    raise DataError(problem, where=where, fix="correct the outline, or remove the annotation")


def _odd_polygon(polygons: list[list[float]], image: _Image) -> str | None:
    for number, polygon in enumerate(polygons):
        points = np.array(polygon)
        if len(points) < 6 or len(points) % 2:
            return f"polygon {number} has {len(points)} numbers, not x and y of three points or more"
        if not np.isfinite(points).all():
            return f"polygon {number} is not finite"
        sides = np.array([image.width, image.height] * (len(points) // 2))
        if (points < -_EDGE).any() or (points > sides + _EDGE).any():
            return f"polygon {number} reaches beyond its image {image.file_name} of {image.width} x {image.height}"
    return None


def _odd_runs(runs: _Runs, size: tuple[int, int]) -> str | None:
    if runs.size != size:
        return f"is of a mask of {runs.size[1]} x {runs.size[0]}, and its image is {size[1]} x {size[0]}"
    if not isinstance(runs.counts, str) and (min(runs.counts, default=0) < 0 or sum(runs.counts) != size[0] * size[1]):
        return f"has runs of {sum(runs.counts)} pixels, and its image has {size[0] * size[1]}"
    return None


def _points(found: _Object, count: int) -> Array:
    """Keypoints ``(K, 3)``: x, y, and 1 where one is labelled."""
    stored = np.array(found.stored.keypoints, np.float64)
    where, problem = f"{found.where}.keypoints", None
    if len(stored) % 3 or (count and len(stored) != 3 * count):
        problem = f"has {len(stored)} numbers, not {f'{3 * count}, as an earlier one' if count else 'three a keypoint'}"
    elif not np.isfinite(stored).all():
        problem = "is not finite"
    elif not np.isin(stored[2::3], (0, 1, 2)).all():
        problem = "has a visibility other than 0, 1 and 2"
    if problem is not None:
        raise DataError(problem, where=where, fix="write x, y and visibility of each keypoint")
    points = stored.reshape(-1, 3)
    return np.concatenate([points[:, :2], points[:, 2:] > 0], 1)


def _boxes(image: _Image, objects: Sequence[_Object]) -> dict[str, Array]:
    """Boxes as corners, their classes, and which stand for a crowd."""
    rows = [(*_corners(each.stored.bbox, image, each.where), each.number, each.stored.iscrowd) for each in objects]
    found = np.array(rows, np.float32).reshape(-1, 6)
    return {"boxes": found[:, :4], "labels": found[:, 4].astype(np.int64), "crowd": found[:, 5] > 0}


def _parsed(path: Path) -> _File:
    try:
        stored = _File.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = [part for part in first["loc"] if isinstance(part, int) or (part.isidentifier() and part[0] != "_")]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
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


def _corners(
    box: tuple[float, float, float, float] | None, image: _Image, where: str
) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of a box x, y, width, height, cut at the edges of its image."""
    if box is None:
        raise DataError("is missing", where=f"{where}.bbox", fix="add [x, y, width, height]")
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
