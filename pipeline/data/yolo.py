"""Samples as YOLO's tools have them: a folder of images, and a text file of boxes for each.

A line is ``class cx cy w h``, with the box in shares of its image's width and height
(https://docs.ultralytics.com/datasets/detect/#ultralytics-yolo-format).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.core import DataError, did_you_mean
from pipeline.core.arrays import Array
from pipeline.core.files import read_small, require_folder
from pipeline.core.strict_yaml import parse_yaml
from pipeline.data.folder import Files, Found, mode_of, stacked
from pipeline.data.images import read_image
from pipeline.data.places import Kind
from pipeline.data.samples import Source

LABELS = Files("label file", frozenset((".txt",)), frozenset())
LISTS = ("classes.txt", "obj.names")
"""Files with a class name in each line."""
_PARENTS = 3
"""Folders above the labels in which names of classes are looked for."""
_LARGEST = 1 << 22
"""Bytes of a text file."""
_EDGE = 1.0
"""Pixels that a box may reach beyond its image: annotations are rounded. They are cut off."""


class _Line(NamedTuple):
    """A box as it is written: in which line, its class, and centre and size in shares of the image."""

    number: int
    kind: int
    box: tuple[float, float, float, float]


class YoloSource(Source):
    """Images, and for each a label file of the same path and name but for its extension.

    An image whose file is empty or missing has no objects. Classes are numbered as the lines do, or, where names are
    found beside the labels and the model names its classes, by these names.

    Args:
        labels: The folder of label files, which may be that of the images.
        classes: The names of the model's classes 0, 1, …, where they are known.

    Raises:
        DataError: There are no images or no label files, one has no image, or a line is no box.
    """

    kind: Kind = "boxes"
    one_by_one = True

    def __init__(self, images: Path, labels: Path, channels: int, classes: Sequence[str] = ()) -> None:
        self.where, self.labels_where, self.labelled = str(images), str(labels), True
        require_folder(images)
        require_folder(labels)
        shown, written = Found.below(images), Found.below(labels, LABELS)
        self._files = shown.by_name(images)
        files = {
            name: file
            for name, file in written.by_name(labels, LABELS).items()
            if file.name not in LISTS or name in self._files
        }
        self._require_pairs(files)
        names, self.notes = _names(labels)
        self.classes = tuple(classes) or names
        self._numbers = None if not names else [_number(name, self.classes) for name in names]
        self._names, self._mode = names, mode_of(channels)
        self._places = {name: files.get(name, labels / f"{name}.txt") for name in self._files}
        self._lines = {name: self._read(file) for name, file in files.items()}
        self.notes += self._passed_over(shown, images) + self._unlabelled()
        if labels != images:
            self.notes += self._passed_over(written, labels)

    def _require_pairs(self, files: Mapping[str, Path]) -> None:
        alone = [file for name, file in files.items() if name not in self._files]
        if alone:
            more = f", nor have {len(alone) - 1} others" if len(alone) > 1 else ""
            fix = "name the folder of its images, or remove the file"
            raise DataError(f"has no image of its name in {self.where}{more}", where=str(alone[0]), fix=fix)
        if not files:
            fix = "name the folder of labels: it has a .txt file for each image"
            raise DataError("holds no label files (.txt)", where=self.labels_where, fix=fix)

    def _read(self, file: Path) -> tuple[_Line, ...]:
        """The boxes of a file; equal lines count once."""
        lines: dict[tuple[Any, ...], _Line] = {}
        for number, text in enumerate(_text(file).splitlines(), 1):
            if text.strip():
                line = _parsed(text, file, number)
                lines.setdefault(line[1:], line._replace(kind=self._class_of(line, file)))
        return tuple(lines.values())

    def _class_of(self, line: _Line, file: Path) -> int:
        where = f"{file}: line {line.number}"
        known = len(self._names or self.classes)
        if known and line.kind >= known:
            fix = "correct the line, or name every class in classes.txt, data.yaml or model.classes"
            raise DataError(f"has class {line.kind}, and the classes are 0 to {known - 1}", where=where, fix=fix)
        number = line.kind if self._numbers is None else self._numbers[line.kind]
        if number is None:
            name = self._names[line.kind]
            fix = "name every class in model.classes, in the order of the model's outputs"
            raise DataError(f"has the class {name!r}; {did_you_mean(name, self.classes)}", where=where, fix=fix)
        return number

    def _passed_over(self, found: Found, folder: Path) -> tuple[str, ...]:
        """What is neither an image nor its label file."""
        used = {*self._places.values(), *(folder / name for name in LISTS)}
        return Found((), tuple(entry for entry in found.passed_over if entry not in used)).notes(folder)

    def _unlabelled(self) -> tuple[str, ...]:
        """Images without a file, which may be of no objects, or forgotten."""
        bare = [name for name in self._files if name not in self._lines]
        if not bare:
            return ()
        return (f"{self.labels_where}: {len(bare)} images have no label file and so no objects, such as {bare[0]}",)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Any]:
        names = list(self._files)
        images = [read_image(self._files[names[i]], self._mode, upright=self.upright) for i in indices]
        found = [
            self._boxes(self._lines.get(names[index], ()), image, self._places[names[index]])
            for index, image in zip(indices, images, strict=True)
        ]
        return (stacked(images),), found

    def _boxes(self, lines: Sequence[_Line], image: Array, file: Path) -> dict[str, Array]:
        """Corners in pixels, cut at the edges of the image, and classes."""
        height, width = image.shape[:2]
        corners = [_corners(line, height, width, f"{file}: line {line.number}") for line in lines]
        kinds = np.array([line.kind for line in lines], np.int64)
        return {"boxes": np.array(corners, np.float32).reshape(-1, 4), "labels": kinds}

    def input_place(self, index: int) -> str:
        return str(list(self._files.values())[index])

    def place_of(self, index: int) -> str:
        return str(list(self._places.values())[index])


def _text(file: Path) -> str:
    try:
        return read_small(file, _LARGEST).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError("is not UTF-8 text", where=str(file), fix="save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(file), fix="allow it, or remove it") from None


def _parsed(text: str, file: Path, number: int) -> _Line:
    """A line as a box of some size in its image."""
    parts = text.split()
    try:
        kind, *box = map(float, parts)
    except ValueError:
        kind, box = -1, []
    problem = fix = None
    if len(box) != 4:
        problem = f"holds {text.strip()[:60]!r}, not five numbers"
        if len(box) == 5:
            problem, fix = f"{problem}: the sixth may be a score", "give labels, not predictions"
        elif len(box) > 5:
            problem, fix = f"{problem}: it may be an outline or keypoints", "export boxes"
    elif kind < 0 or kind != int(kind):
        problem = f"has class {parts[0]}, not an integer from 0"
    elif not all(map(math.isfinite, box)):
        problem = "has a number that is not finite"
    elif max(box) > 1 or min(box) < 0:
        problem = f"has {max(box, key=lambda value: abs(value - 0.5)):g}, not a share of the image from 0 to 1"
    elif min(box[2:]) == 0:
        problem = "is a box without width or height"
    if problem is not None:
        fix = f"{fix + ': ' if fix else ''}write class cx cy width height, in shares of the image"
        raise DataError(problem, where=f"{file}: line {number}", fix=fix)
    x, y, width, height = box
    return _Line(number, int(kind), (x, y, width, height))


def _corners(line: _Line, height: int, width: int, where: str) -> tuple[float, float, float, float]:
    x, y, across, down = line.box
    left, right = (x - across / 2) * width, (x + across / 2) * width
    top, bottom = (y - down / 2) * height, (y + down / 2) * height
    if min(left, top) < -_EDGE or right > width + _EDGE or bottom > height + _EDGE:
        problem = f"reaches beyond its image: {left:.1f}, {top:.1f} to {right:.1f}, {bottom:.1f} of {width} x {height}"
        fix = "cut the box at the edges of the image; the first two numbers are its centre, not its corner"
        raise DataError(problem, where=where, fix=fix)
    return max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)


def _number(name: str, classes: Sequence[str]) -> int | None:
    return list(classes).index(name) if name in classes else None


def _names(labels: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of classes 0, 1, … that stand beside the labels, and which file has them; none where none does."""
    for folder in (labels, *labels.resolve().parents[:_PARENTS]):
        for file in (*(folder / name for name in LISTS), *sorted(folder.glob("*.y*ml"))):
            if file.is_file() and (names := _names_in(file)):
                return names, (f"{labels}: names of classes are those in {file}",)
    return (), ()


def _names_in(file: Path) -> tuple[str, ...]:
    """The class names in a list or in YOLO's ``data.yaml``; none where a YAML file is of something else."""
    if file.name in LISTS:
        names: Any = [line.strip() for line in _text(file).splitlines() if line.strip()]
    else:
        try:
            stored = parse_yaml(_text(file))
        except ValueError:
            return ()
        names = stored.get("names") if isinstance(stored, dict) and {"train", "val", "test"} & set(stored) else None
        if isinstance(names, dict):
            if set(names) != set(range(len(names))):
                problem = f"numbers its classes {', '.join(map(str, list(names)[:5]))}, not from 0 without a gap"
                raise DataError(problem, where=f"{file}: names", fix="number them 0, 1, 2, …")
            names = [names[number] for number in range(len(names))]
    if not isinstance(names, list):
        return ()
    found = tuple(map(str, names))
    if twice := next((name for name in found if found.count(name) > 1), None):
        raise DataError(f"has the class {twice!r} twice", where=str(file), fix="give each class a name of its own")
    return found
