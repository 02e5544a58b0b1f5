"""What a folder or file of samples is: which format, which part is for training, and what the labels are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import DataError
from pipeline.data.archive import stated_arrays
from pipeline.data.images import EXTENSIONS

TRAIN, EVALUATION = ("train", "training"), ("test", "testing", "val", "valid", "validation", "eval", "evaluation")
"""Names of parts; of several of one kind, the first that is there counts."""
LABELS = ("labels", "label", "targets", "target", "y", "classes", "class")
LOOKED_AT = 200
"""Images whose sizes are looked at."""
CALIBRATION = 500
MAX_JSON_BYTES = 1 << 29
_FORMATS = (
    "a folder of images with a subfolder for each class (also below train and test), images with COCO's or YOLO's "
    "labels, an .npz, a .csv or .jsonl, or what a Hugging Face data set's save_to_disk has written"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """Sets of samples, as a recipe has them, with their paths as they were found.

    Attributes:
        what: The format in words.
        train: For training and calibration; None where all samples are in one set.
        classes: Names of classes, in the order of their numbers.
        task: The task that the labels are for, where they tell.
        images: Some of the images.
        arrays: Shape without the first axis, and type, of each input in an npz.
    """

    what: str
    evaluation: dict[str, Any]
    train: dict[str, Any] | None = None
    classes: tuple[str, ...] = ()
    task: str | None = None
    images: tuple[Path, ...] = ()
    arrays: tuple[tuple[str, tuple[int, ...], str], ...] = ()

    @property
    def sets(self) -> dict[str, dict[str, Any]]:
        """The three sets of a recipe; one set for all is divided, and calibration takes some training samples."""
        if self.train is not None:
            train, evaluation = self.train, self.evaluation
        else:
            train = {**self.evaluation, "part": {"held_out": False}}
            evaluation = {**self.evaluation, "part": {"held_out": True, "share": 0.2}}
        return {"train": train, "calibration": {**train, "limit": CALIBRATION}, "evaluation": evaluation}


def recognise(path: Path) -> Recognised:
    """What a path of samples is.

    Raises:
        DataError: There is nothing, or nothing that is known.
    """
    if path.is_file():
        found = _of_file(path)
    elif path.is_dir():
        readers = (_hugging_face, _coco, _yolo, _class_folders, _files, _loose_images)
        found = next(filter(None, (read(path) for read in readers)), None)
    else:
        raise DataError("no such file or folder", where=str(path), fix="correct --data")
    if found is None:
        raise DataError("holds no samples that are known", where=str(path), fix=f"give {_FORMATS}")
    return found


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "_")))


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in _visible(folder) if entry.is_dir()]


def _images(folder: Path, *, deep: bool = True) -> Iterator[Path]:
    found = folder.rglob("*") if deep else folder.iterdir()
    return (file for file in found if file.suffix.lower() in EXTENSIONS and not file.name.startswith("."))


def _spread(files: Iterable[Path]) -> tuple[Path, ...]:
    """Some of the files, from all over."""
    found = sorted(islice(files, 50_000))
    return tuple(found[:: max(1, len(found) // LOOKED_AT)][:LOOKED_AT])


def _parts(entries: Iterable[tuple[str, Path]]) -> tuple[Path | None, Path | None]:
    """The entries for training and for evaluation, by words in their names."""
    named = [(re.split(r"[^a-z]+", name.lower()), path) for name, path in entries]

    def first(words: tuple[str, ...]) -> Path | None:
        return next((path for word in words for name, path in named if word in name), None)

    return first(TRAIN), first(EVALUATION)


def _class_folders(folder: Path) -> Recognised | None:
    """Images with a subfolder for each class, perhaps below one for each part."""
    folders = _folders(folder)
    train, evaluation = _parts((each.name, each) for each in folders)
    if train is not None and evaluation is not None and _classes(train) and _classes(evaluation):
        classes = _classes(train)
        return Recognised(
            what=f"images of {len(classes)} classes, {train.name} and {evaluation.name} apart",
            train={"folder": train},
            evaluation={"folder": evaluation},
            classes=classes,
            task="classification",
            images=_spread(_images(train)),
        )
    classes = _classes(folder)
    if not classes:
        return None
    return Recognised(
        what=f"images of {len(classes)} classes in one set",
        evaluation={"folder": folder},
        classes=classes,
        task="classification",
        images=_spread(_images(folder)),
    )


def _classes(folder: Path) -> tuple[str, ...]:
    """The names of subfolders with images in them; none where a folder of the kind lacks them."""
    folders = _folders(folder)
    if len(folders) < 2 or not all(next(_images(each, deep=False), None) for each in folders):
        return ()
    return tuple(each.name for each in folders)


def _loose_images(folder: Path) -> Recognised | None:
    images = _spread(_images(folder))
    if not images:
        return None
    source = {"folder": folder, "labels": None}
    return Recognised(what="images without labels", evaluation=source, images=images)


def _coco(folder: Path) -> Recognised | None:
    """Images with COCO's JSON files, one for all or one for each part."""
    found: list[tuple[Path, dict[str, Any]]] = []
    for file in sorted((*folder.glob("*.json"), *folder.glob("*/*.json"))):
        if file.stat().st_size <= MAX_JSON_BYTES:
            try:
                content = json.loads(file.read_bytes())
            except ValueError:
                continue
            if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
                found.append((file, content))
    if not found:
        return None
    sources = {file: source for file, content in found if (source := _coco_source(folder, file, content))}
    train, evaluation = _parts((file.stem, file) for file in sources)
    if train is None or evaluation is None:
        train, evaluation = None, next(iter(sources), None)
    if evaluation is None:
        return None
    categories = sorted(dict(found)[evaluation]["categories"], key=lambda each: each["id"])
    return Recognised(
        what="images with boxes in COCO's format",
        train=None if train is None else sources[train],
        evaluation=sources[evaluation],
        classes=tuple(each["name"] for each in categories),
        task="detection",
        images=_spread(_images(sources[evaluation]["folder"])),
    )


def _coco_source(folder: Path, file: Path, content: dict[str, Any]) -> dict[str, Any] | None:
    """A COCO file with the folder in which its first image lies."""
    first = content["images"][0]["file_name"] if content["images"] else ""
    near = (file.parent, folder, *_folders(file.parent), *_folders(folder))
    images = [below for each in near for below in (each, *_folders(each))]
    home = next((each for each in images if first and (each / first).is_file()), None)
    return None if home is None else {"folder": home, "coco": file}


def _yolo(folder: Path) -> Recognised | None:
    """Folders ``images`` and ``labels``, perhaps with a subfolder for each part."""
    images, labels = folder / "images", folder / "labels"
    if not (images.is_dir() and next(labels.rglob("*.txt"), None)):
        return None
    train, evaluation = _parts((each.name, each) for each in _folders(images))
    divided = train is not None and evaluation is not None

    def source(part: Path) -> dict[str, Any]:
        return {"folder": part, "yolo": labels / part.relative_to(images)}

    return Recognised(
        what="images with boxes in YOLO's format",
        train=source(train) if divided and train is not None else None,
        evaluation=source(evaluation) if divided and evaluation is not None else source(images),
        task="detection",
        images=_spread(_images(images)),
    )


def _hugging_face(folder: Path) -> Recognised | None:
    """What ``save_to_disk`` has written: one data set, or several by name."""
    if (folder / "dataset_dict.json").is_file():
        names = json.loads((folder / "dataset_dict.json").read_bytes()).get("splits", [])
        train, evaluation = _parts((name, Path(name)) for name in names)
        if train is not None and evaluation is not None:
            return Recognised(
                what="a Hugging Face data set",
                train={"huggingface": folder, "split": train.name},
                evaluation={"huggingface": folder, "split": evaluation.name},
            )
        return Recognised(what="a Hugging Face data set", evaluation={"huggingface": folder, "split": names[0]})
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return Recognised(what="a Hugging Face data set", evaluation={"huggingface": folder})
    return None


def _files(folder: Path) -> Recognised | None:
    """Archives or tables in a folder, perhaps one for each part."""
    files = [file for file in _visible(folder) if file.suffix in (".npz", ".csv", ".jsonl")]
    train, evaluation = _parts((file.stem, file) for file in files)
    if train is not None and evaluation is not None:
        first, second = _of_file(train), _of_file(evaluation)
        if first is not None and second is not None:
            return Recognised(
                what=second.what, train=first.evaluation, evaluation=second.evaluation, arrays=second.arrays
            )
    return _of_file(files[0]) if len(files) == 1 else None


def _of_file(path: Path) -> Recognised | None:
    if path.suffix == ".npz":
        return _npz(path)
    if path.suffix in (".csv", ".jsonl"):
        return Recognised(what="a table", evaluation={"table": path})
    return None


def _npz(path: Path) -> Recognised | None:
    """Arrays of samples and labels; perhaps as ``x_train, y_train, x_test, y_test``."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                return None
            stated = stated_arrays(archive, archive.files, str(path))
            kinds = {name: archive[name].dtype.name for name in archive.files if np.prod(stated[name][0]) < 1e8}
    except (OSError, ValueError, KeyError):
        return None
    shapes = {name: shape for name, (shape, _) in stated.items() if shape}
    train = [name for name in shapes if any(word in re.split(r"[^a-z]+", name.lower()) for word in TRAIN)]
    others = [name for name in shapes if name not in train]
    evaluation = _arrays(path, others, shapes)
    if evaluation is None:
        return None
    arrays = tuple((name, shapes[name][1:], kinds.get(name, "float32")) for name in evaluation["inputs"])
    fitted = _arrays(path, train, shapes) if train else None
    return Recognised(what="arrays in an npz", train=fitted, evaluation=evaluation, arrays=arrays)


def _arrays(path: Path, names: list[str], shapes: dict[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Which arrays are inputs, and which is the labels."""
    words = {name: re.split(r"[^a-z]+", name.lower()) for name in names}
    labels = next((name for known in LABELS for name in names if known in words[name]), None)
    inputs = [name for name in names if name != labels and (labels is None or shapes[name][0] == shapes[labels][0])]
    return {"npz": path, "inputs": inputs, "labels": labels} if inputs else None
