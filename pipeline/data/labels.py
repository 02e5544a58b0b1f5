"""Forms of labels: what a task expects of them, and how what a user has stored becomes tensors.

Sources give labels as they are stored: an array ``(N, …)``, or a list with an entry per sample. A form turns those of
a batch into tensors, and refuses what cannot be meant, naming the sample and the field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.core import DataError, did_you_mean
from pipeline.core.arrays import Array
from pipeline.data.places import IGNORED, NOWHERE, Frame, Places, Size, follow, follow_image, in_order

Labels = Any
"""Of a batch: a tensor ``(N, …)``, or a list with an entry per sample where their sizes differ."""
IGNORED_TOKEN = -100
"""A label for tokens that count for nothing, as PyTorch's losses have it."""


@dataclass(frozen=True, slots=True)
class LabelForm:
    """What the labels of a task look like.

    Attributes:
        expected: In words, for messages: ``one class index for each sample``.
        convert: Turns the stored labels of a batch into tensors; raises `MisfitError`.
        places: What they say about places in the image, and so how they follow it.
        texts: Whether a label is a text, so that one of digits is no number.
        classes: How many classes they tell apart; None where they name none, or none that the model knows.
    """

    expected: str
    convert: Callable[[Any], Labels]
    places: Places = NOWHERE
    texts: bool = False
    classes: int | None = None

    def read(
        self,
        stored: Any,
        where: str,
        indices: Sequence[int],
        *,
        frames: Sequence[Frame] | None = None,
        place_of: Callable[[int], str] | None = None,
        names: Sequence[str] = (),
    ) -> Labels:
        """The labels of a batch, in the coordinates of the model's input.

        Args:
            stored: As a source gives them.
            where: The file and the field, for messages.
            indices: Which samples of the source they belong to.
            frames: Where each sample's image lies in the input; None where it stays as it is stored.
            place_of: The file and the line of a sample's label, where each has its own.
            names: Of classes 0, 1, …, which labels may have in place of numbers.

        Raises:
            DataError: They are not what the task expects.
        """
        try:
            if not self.texts and _has_text(stored):
                known = names if self.classes is not None else ()
                stored = [_numbered(entry, known, sample) for sample, entry in enumerate(stored)]
            if frames is not None:
                stored = [self._followed(label, frame, i) for i, (label, frame) in enumerate(_pairs(stored, frames))]
            labels = self.convert(stored)
            if len(labels) != len(indices):
                raise MisfitError(f"are {len(labels)} for {len(indices)} samples")
            return labels
        except MisfitError as misfit:
            sample = "" if misfit.sample is None else f"sample {indices[misfit.sample]} "
            if misfit.sample is not None and place_of is not None:
                where = place_of(indices[misfit.sample])
            place = f"{where}.{misfit.field}" if misfit.field else where
            fix = misfit.fix or f"store {self.expected}; or name the task that these labels are for"
            raise DataError(f"{sample}{misfit}", where=place, fix=fix) from None

    def _followed(self, label: Any, frame: Frame, sample: int) -> Any:
        if self.places.kind == "boxes":
            label = checked_boxes(label, sample, frame.stored)
        elif isinstance(label, Tensor):
            label = numpy_of(label)
        if self.places.size is not None:
            label = numpy_of(label)
            return follow_image(label, frame, self.places.size) if label.dtype.kind in "biuf" else label
        return follow(self.places.kind, label, frame)


def _pairs(stored: Any, frames: Sequence[Frame]) -> Iterator[tuple[Any, Frame]]:
    if len(stored) != len(frames):
        raise MisfitError(f"are {len(stored)} for {len(frames)} samples")
    return zip(stored, frames, strict=True)


def _has_text(stored: Any) -> bool:
    return any(isinstance(entry, str) for entry in stored) if not isinstance(stored, Tensor) else False


def _numbered(entry: Any, names: Sequence[str], sample: int) -> Any:
    """A label as a number where it is a text that can be meant as one: the name of a class, or digits."""
    if not isinstance(entry, str):
        return entry
    value = value_of(entry) if (number := named_class(entry, names, sample)) is None else number
    if isinstance(value, str) and names:
        fix = "correct the label, or list every class in model.classes"
        raise MisfitError(
            f"has the label {value!r:.80}, which is no class; {did_you_mean(value, names)}", sample, fix=fix
        )
    return value


def named_class(text: str, names: Sequence[str], sample: int | None = None) -> int | None:
    """The number of the class of this name; None where there is none.

    Raises:
        MisfitError: The name is the number of another class.
    """
    if text not in names:
        return None
    number = list(names).index(text)
    if text.isdecimal() and int(text) != number and int(text) < len(names):
        problem = f"has the label {str(text)!r}, which is the name of class {number}, and the number of another one"
        raise MisfitError(problem, sample, fix="give the classes names that are no numbers, or store numbers")
    return number


def value_of(text: Any) -> Any:
    """A number, a truth value or a list that a table's cell holds as text; anything else as it is.

    >>> value_of("3"), value_of("[1, 2.5]"), value_of("cat"), value_of("007"), value_of(4)
    (3, [1, 2.5], 'cat', '007', 4)
    """
    if not isinstance(text, str):
        return text
    if text in ("True", "False"):  # as pandas writes them
        return text == "True"
    try:
        return json.loads(text)
    except ValueError:
        return str(text)


class MisfitError(ValueError):
    """Labels that cannot be meant.

    Args:
        sample: Its position in the batch; None where all are wrong.
        field: The wrong part of a label, where it has several.
        fix: What to store instead, where that is known better than by the form.
    """

    def __init__(
        self, problem: str, sample: int | None = None, field: str | None = None, fix: str | None = None
    ) -> None:
        super().__init__(problem)
        self.sample, self.field, self.fix = sample, field, fix


def numpy_of(value: Any) -> Array:
    """A tensor, an array, a number or a list as NumPy holds it, which has no bfloat16."""
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    found: Array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return found


def array_of(stored: Any) -> Array:
    """Labels of one size each, as one array of numbers ``(N, …)``."""
    if isinstance(stored, np.ndarray) and stored.dtype != object:
        array = stored
    else:
        entries = [numpy_of(entry) for entry in stored]
        text = next((i for i, entry in enumerate(entries) if entry.dtype.kind not in "biuf"), None)
        if text is not None:
            fix = "store numbers; in a table, names of classes will do where model.classes lists them"
            raise MisfitError(f"has the label {stored[text]!r:.80}, which is no number", text, fix=fix)
        odd = next((i for i, entry in enumerate(entries) if entry.shape != entries[0].shape), None)
        if odd is not None:
            raise MisfitError(f"has a label of shape {entries[odd].shape}, an earlier one {entries[0].shape}", odd)
        array = np.stack(entries)
    if array.dtype.kind not in "biuf":
        raise MisfitError(
            f"has labels of type {array.dtype}, not numbers" + (f", such as {array[0]!r}" if len(array) else "")
        )
    return array


def _integers(stored: Any) -> Array:
    array = array_of(stored)
    flat = array.reshape(len(array), -1)
    wrong = (
        (~np.isfinite(flat) | (flat != np.floor(flat))).any(1) if array.dtype.kind == "f" else np.zeros(len(flat), bool)
    )
    if wrong.any():
        sample = int(wrong.argmax())
        value = flat[sample][~np.isfinite(flat[sample]) | (flat[sample] != np.floor(flat[sample]))][0]
        raise MisfitError(f"has {value}, not an integer", sample)
    return array.astype(np.int64)


def _refuse(wrong: Array, problem: Callable[[int], str], field: str | None = None) -> None:
    """Refuse the first sample for which ``wrong`` ``(N, …)`` is true anywhere."""
    samples = wrong.reshape(len(wrong), -1).any(1)
    if samples.any():
        first = int(samples.argmax())
        raise MisfitError(problem(first), first, field)


def class_indices(classes: int | None = None) -> LabelForm:
    """One class per sample: ``(N,) int64``."""

    def convert(stored: Any) -> Tensor:
        array = array_of(stored)
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        elif array.ndim == 2 and array.shape[1] == classes:
            array = from_one_hot(array)
        if array.ndim != 1:
            fix = "store the index of each sample's class: labels.argmax(1); or name the task that these labels are for"
            problem = f"has a label of shape {array.shape[1:]}, not one number"
            raise MisfitError(problem, 0, fix=fix if array.ndim == 2 else None)
        found = _integers(array)
        if classes is not None:
            _refuse((found < 0) | (found >= classes), lambda i: f"has label {found[i]}, {_range(classes)}")
        return torch.from_numpy(found)

    return LabelForm("one integer for each sample, the index of its class", convert, classes=classes)


def from_one_hot(array: Array, axis: int = 1) -> Array:
    """Where along ``axis`` each entry is 1, and 0 elsewhere.

    Raises:
        MisfitError: An entry is anything else, such as a probability.
    """
    right = ((array == 0) | (array == 1)).all(axis) & (array.sum(axis) == 1)

    def problem(sample: int) -> str:
        shown = f" {array[sample].tolist()!s:.60}" if array.ndim == 2 else ""
        return f"has the label{shown} of shape {array.shape[1:]}, which is no class, and not one-hot (one 1, else 0)"

    wrong = (~right).reshape(len(array), -1).any(1)
    if wrong.any():
        sample = int(wrong.argmax())
        raise MisfitError(problem(sample), sample, fix="store the index of the class: labels.argmax(1)")
    found: Array = array.argmax(axis)
    return found


def _range(classes: int) -> str:
    return f"but the model has {classes} classes (0 to {classes - 1})"


def yes_or_no(shape: tuple[int, ...], places: Places = NOWHERE) -> LabelForm:
    """Independent truth values for each sample: ``(N, *shape) float32`` of zeros and ones."""

    def convert(stored: Any) -> Tensor:
        found = _shaped(array_of(stored), shape)
        _refuse((found != 0) & (found != 1), lambda _: "has a value other than 0 and 1")
        return torch.from_numpy(found.astype(np.float32))

    return LabelForm(f"{_many(shape)} 0 or 1 for each sample", convert, places)


def numbers(shape: tuple[int, ...], places: Places, limit: float | None = None) -> LabelForm:
    """Real numbers for each sample: ``(N, *shape) float32``.

    Args:
        limit: Beyond which images are of another range than the model's.
    """

    def convert(stored: Any) -> Tensor:
        found = array_of(stored)
        if places.kind == "image" and found.ndim == 4 and found.shape[1:] == (*shape[1:], shape[0]) != shape:
            found = found.transpose(0, 3, 1, 2)
        found = np.ascontiguousarray(_shaped(found, shape))
        _refuse(~np.isfinite(found), lambda _: "has a label that is NaN or infinite")
        beyond = np.abs(found).reshape(len(found), -1).max(1) > limit if limit is not None else np.zeros(1, bool)
        if beyond.any():
            sample = int(beyond.argmax())
            problem = f"has a value of {np.abs(found[sample]).max():g} in its label, and the model's images"
            fix = "store labels in the range of the model's outputs, or name it: task: {name: image, data_range: 255}"
            raise MisfitError(f"{problem} have smaller ones", sample, fix=fix)
        return torch.from_numpy(found.astype(np.float32))

    return LabelForm(f"{_many(shape)} numbers for each sample", convert, places)


def _many(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) if shape else "one value,"


def _shaped(array: Array, shape: tuple[int, ...]) -> Array:
    """An axis of one channel may be there or not."""
    if (
        tuple(array.shape[1:]) != shape
        and array[0].size == int(np.prod(shape))
        and _without_ones(array.shape[1:]) == _without_ones(shape)
    ):
        return array.reshape(len(array), *shape)
    if tuple(array.shape[1:]) != shape:
        raise MisfitError(f"has a label of shape {tuple(array.shape[1:])}, but the task needs {shape}", 0)
    return array


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def mask(classes: int, height: int, width: int, image: Size | None = None) -> LabelForm:
    """A class per pixel: ``(N, H, W) int64``; 255 counts for nothing.

    Args:
        image: The size of the model's input, which masks may have, too.
    """

    def convert(stored: Any) -> Tensor:
        found = array_of(stored)
        axis = next((axis for axis in (1, 3) if found.ndim == 4 and classes > 1 and found.shape[axis] == classes), None)
        found = _integers(found if axis is None else from_one_hot(found, axis))
        found = _shaped(found, image if image is not None and found.shape[-2:] == image else (height, width))
        wrong = ((found < 0) | (found >= classes)) & (found != IGNORED)
        _refuse(wrong, lambda i: f"has the value {found[i][wrong[i]][0]} in its mask, {_range(classes)}")
        return torch.from_numpy(found)

    return LabelForm(
        f"a mask {height} x {width} of class indices for each sample, {IGNORED} where none counts",
        convert,
        Places(kind="mask"),
        classes=classes,
    )


def token_classes(classes: int, length: int) -> LabelForm:
    """A class per token: ``(N, T) int64``; -100 counts for nothing."""

    def convert(stored: Any) -> Tensor:
        found = _shaped(_integers(stored), (length,))
        wrong = ((found < 0) | (found >= classes)) & (found != IGNORED_TOKEN)
        _refuse(wrong, lambda i: f"has the token label {found[i][wrong[i]][0]}, {_range(classes)}")
        return torch.from_numpy(found)

    return LabelForm(
        f"{length} class indices for each sample, {IGNORED_TOKEN} where none counts",
        convert,
        in_order("tokens"),
        classes=classes,
    )


def sequences(symbols: int, alphabet: str = "") -> LabelForm:
    """A text of any length: a list of ``(L,) int64``, the numbers of its symbols.

    Args:
        symbols: How many the model knows; 0 is the blank, and no symbol of a text.
        alphabet: The characters of symbols 1, 2, …, so that labels may be texts.
    """

    def convert(stored: Any) -> list[Tensor]:
        return [torch.from_numpy(_text(entry, sample)) for sample, entry in enumerate(stored)]

    def _text(entry: Any, sample: int) -> Array:
        text = _spelled(entry, alphabet, sample) if isinstance(entry, str) else entry
        text = numpy_of(text)
        if text.size == 0:
            raise MisfitError("has an empty text", sample)
        if text.ndim != 1 or text.dtype.kind not in "iu":
            raise MisfitError(
                f"has a label of shape {text.shape} and type {text.dtype}, not a list of integers", sample
            )
        text = text[text >= 0]  # padding
        if text.size == 0:
            raise MisfitError("has an empty text", sample)
        wrong = (text < 1) | (text >= symbols)
        if wrong.any():
            raise MisfitError(f"has the symbol {text[wrong][0]}, not one from 1 to {symbols - 1}", sample)
        return text.astype(np.int64)

    expected = f"a list of symbols from 1 to {symbols - 1} for each sample"
    return LabelForm(expected, convert, in_order("text"), texts=True)


def _spelled(text: str, alphabet: str, sample: int) -> list[int]:
    unknown = next((character for character in text if character not in alphabet), None)
    if unknown is not None:
        fix = "name the characters of symbols 1, 2, … in task.alphabet" if not alphabet else "add it to task.alphabet"
        raise MisfitError(f"has the text {text!r}, and {unknown!r} is not in the alphabet", sample, fix=fix)
    return [alphabet.index(character) + 1 for character in text]


def boxes(classes: int, height: int, width: int) -> LabelForm:
    """Boxes ``(M, 4) float32`` as corners x1, y1, x2, y2 in pixels, and their classes ``(M,) int64``, per sample.

    ``crowd`` ``(M,) bool``, where it is there, marks boxes around many objects, which count for nothing (COCO).
    """

    def convert(stored: Any) -> list[dict[str, Tensor]]:
        return [
            _tensors_of(checked_boxes(entry, sample, (height, width)), sample) for sample, entry in enumerate(stored)
        ]

    def _tensors_of(entry: Mapping[str, Array], sample: int) -> dict[str, Tensor]:
        kinds = entry["labels"]
        if len(kinds) and (kinds.dtype.kind not in "iu" or kinds.min() < 0 or kinds.max() >= classes):
            bad = kinds[(kinds < 0) | (kinds >= classes)] if kinds.dtype.kind in "iu" else kinds
            raise MisfitError(f"has label {bad[0]}, {_range(classes)}", sample, "labels")
        found = {"boxes": torch.from_numpy(entry["boxes"]), "labels": torch.from_numpy(kinds.astype(np.int64))}
        return found | ({"crowd": torch.from_numpy(entry["crowd"])} if "crowd" in entry else {})

    return LabelForm(
        "boxes (M, 4) as x1, y1, x2, y2 in pixels, and labels (M,), for each sample",
        convert,
        Places(kind="boxes"),
        classes=classes,
    )


def checked_boxes(entry: Any, sample: int, size: Size) -> dict[str, Array]:
    """A sample's boxes ``(M, 4) float32``, labels and, where it is there, crowd.

    Args:
        size: Height and width of the image that they lie in.

    Raises:
        MisfitError: There are none of them, or not as many of each, or a box is empty, inverted or outside the image.
    """
    if not isinstance(entry, Mapping) or not {"boxes", "labels"} <= set(entry):
        raise MisfitError("has no boxes and labels", sample, fix="store {boxes: (M, 4), labels: (M,)} for each sample")
    try:
        corners = numpy_of(entry["boxes"]).astype(np.float32)
    except (TypeError, ValueError):
        raise MisfitError("has boxes that are not four numbers each", sample, "boxes") from None
    if corners.size % 4 or (corners.size and corners.shape[-1] != 4):
        raise MisfitError("has boxes that are not four numbers each", sample, "boxes")
    corners, kinds = corners.reshape(-1, 4), numpy_of(entry["labels"]).reshape(-1)
    crowd = numpy_of(entry.get("crowd", np.zeros(len(kinds), bool))).reshape(-1).astype(bool)
    if not len(kinds) == len(corners) == len(crowd):
        raise MisfitError(f"has {len(corners)} boxes and {len(kinds)} labels", sample)
    height, width = size
    cut = np.clip(corners, 0, np.array([width, height] * 2)).astype(np.float32)
    inverted = (corners[:, 2:] <= corners[:, :2]).any(1)
    outside = (np.abs(cut - corners) > EDGE).any(1) | (cut[:, 2:] <= cut[:, :2]).any(1)
    for wrong, what in (
        (~np.isfinite(corners).all(1), "is not finite"),
        (inverted, "is empty or inverted"),
        (outside, f"is outside the image of {width} x {height}"),
    ):
        if wrong.any():
            raise MisfitError(f"has the box {corners[wrong.argmax()].tolist()}, which {what}", sample, "boxes")
    kinds = kinds if len(kinds) else kinds.astype(np.int64)
    return {"boxes": cut, "labels": kinds} | ({"crowd": crowd} if "crowd" in entry else {})


EDGE = 0.02
"""Pixels that a box may reach beyond the image: what rounding to two decimals may add to both coordinates."""


def keypoints(count: int, swap: tuple[tuple[int, int], ...] | None = None) -> LabelForm:
    """Places ``(N, K, 3) float32``: x, y in pixels, and whether the point is labelled; without it, all are.

    Args:
        swap: Pairs that change places when the image is mirrored; None where it is not known.
    """

    def convert(stored: Any) -> Tensor:
        found = array_of(stored)
        if found.shape[1:] == (count, 2):
            found = np.concatenate([found, np.ones((*found.shape[:2], 1), found.dtype)], 2)
        found = _shaped(found, (count, 3))
        _refuse(~np.isfinite(found), lambda _: "has a keypoint that is NaN or infinite")
        return torch.from_numpy(found.astype(np.float32))

    places = Places(kind="points", swap=swap or (), refused={} if swap is not None else {"horizontal_flip": _UNPAIRED})
    return LabelForm(f"{count} keypoints (x, y) or (x, y, visible) for each sample", convert, places)


_UNPAIRED = "left and right keypoints would change places; say which do in task.swap, with [] where none do"


def _as_they_are(stored: Any) -> Labels:
    """Tensors where sizes agree, integers as int64, else a list: for tasks of the user's own."""
    if isinstance(stored, np.ndarray) and stored.dtype.kind in "biuf":
        return torch.from_numpy(stored.astype(np.int64 if stored.dtype.kind in "iu" else stored.dtype))
    entries = [_tensors(entry) for entry in stored]
    first = entries[0] if entries else None
    if isinstance(first, Tensor) and all(isinstance(entry, Tensor) and entry.shape == first.shape for entry in entries):
        found = torch.stack(entries)
        return found if found.is_floating_point() or found.dtype == torch.bool else found.long()
    return entries


def _tensors(entry: Any) -> Any:
    if isinstance(entry, Mapping):
        return {name: _tensors(value) for name, value in entry.items()}
    if isinstance(entry, tuple | list) and not all(isinstance(value, int | float | bool) for value in entry):
        return [_tensors(value) for value in entry]
    if isinstance(entry, str | bytes) or entry is None:
        return entry
    return torch.as_tensor(np.asarray(entry)) if not isinstance(entry, Tensor) else entry.detach().cpu()


def tensors_in(labels: Labels | None) -> Iterator[Tensor]:
    """The tensors of a batch's labels, in order; text counts by its characters' numbers."""
    if labels is None:
        return
    if isinstance(labels, Tensor):
        yield labels
    elif isinstance(labels, Mapping):
        for name in sorted(labels):
            yield from tensors_in(labels[name])
    elif isinstance(labels, str | bytes):
        yield torch.tensor(list(labels.encode() if isinstance(labels, str) else labels), dtype=torch.uint8)
    else:
        for entry in labels:
            yield from tensors_in(entry)


ANY = LabelForm("whatever the metrics take", _as_they_are, Places(kind="unknown"))
"""For tasks of the user's own: only their metrics know what is right."""
