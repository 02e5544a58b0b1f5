"""Forms of labels: what a task expects of them, and how what a user has stored becomes tensors.

Sources give labels as they are stored: an array ``(N, …)``, or a list with an entry per sample. A form turns those of
a batch into tensors, and refuses what cannot be meant, naming the sample and the field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.core import DataError
from pipeline.core.arrays import Array

Labels = Any
"""Of a batch: a tensor ``(N, …)``, or a list with an entry per sample where their sizes differ."""
IGNORED = 255
"""A mask's value for pixels that count for nothing."""
IGNORED_TOKEN = -100
"""A label for tokens that count for nothing, as PyTorch's losses have it."""


@dataclass(frozen=True, slots=True)
class LabelForm:
    """What the labels of a task look like.

    Attributes:
        expected: In words, for messages: ``one class index for each sample``.
        convert: Turns the stored labels of a batch into tensors; raises `MisfitError`.
    """

    expected: str
    convert: Callable[[Any], Labels]

    def read(self, stored: Any, where: str, indices: Sequence[int]) -> Labels:
        """The labels of a batch.

        Args:
            stored: As a source gives them.
            where: The file and the field, for messages.
            indices: Which samples of the source they belong to.

        Raises:
            DataError: They are not what the task expects.
        """
        try:
            return self.convert(stored)
        except MisfitError as misfit:
            sample = "" if misfit.sample is None else f"sample {indices[misfit.sample]} "
            place = f"{where}.{misfit.field}" if misfit.field else where
            fix = misfit.fix or f"store {self.expected}; or name the task that these labels are for"
            raise DataError(f"{sample}{misfit}", where=place, fix=fix) from None


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


def array_of(stored: Any) -> Array:
    """Labels of one size each, as one array of numbers ``(N, …)``."""
    if isinstance(stored, np.ndarray) and stored.dtype != object:
        array = stored
    else:
        entries = [entry.detach().cpu().numpy() if isinstance(entry, Tensor) else np.asarray(entry) for entry in stored]
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
        if array.ndim == 2 and array.shape[1] == 1 and isinstance(stored, list):
            array = array[:, 0]
        if array.ndim != 1:
            fix = "labels.ravel()" if array.ndim == 2 and array.shape[1] == 1 else "labels.argmax(1)"
            problem = f"has a label of shape {array.shape[1:]}, not one number"
            raise MisfitError(
                problem, 0, fix=f"store the index of each sample's class: {fix}" if array.ndim == 2 else None
            )
        found = _integers(array)
        if classes is not None:
            _refuse((found < 0) | (found >= classes), lambda i: f"has label {found[i]}, {_range(classes)}")
        return torch.from_numpy(found)

    return LabelForm("one integer for each sample, the index of its class", convert)


def _range(classes: int) -> str:
    return f"but the model has {classes} classes (0 to {classes - 1})"


def yes_or_no(shape: tuple[int, ...]) -> LabelForm:
    """Independent truth values for each sample: ``(N, *shape) float32`` of zeros and ones."""

    def convert(stored: Any) -> Tensor:
        found = _shaped(array_of(stored), shape)
        _refuse((found != 0) & (found != 1), lambda _: "has a value other than 0 and 1")
        return torch.from_numpy(found.astype(np.float32))

    return LabelForm(f"{_many(shape)} 0 or 1 for each sample", convert)


def numbers(shape: tuple[int, ...]) -> LabelForm:
    """Real numbers for each sample: ``(N, *shape) float32``."""

    def convert(stored: Any) -> Tensor:
        found = _shaped(array_of(stored), shape)
        _refuse(~np.isfinite(found), lambda _: "has a label that is NaN or infinite")
        return torch.from_numpy(found.astype(np.float32))

    return LabelForm(f"{_many(shape)} numbers for each sample", convert)


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


def mask(classes: int, height: int, width: int) -> LabelForm:
    """A class per pixel: ``(N, H, W) int64``; 255 counts for nothing."""

    def convert(stored: Any) -> Tensor:
        found = _shaped(_integers(stored), (height, width))
        wrong = ((found < 0) | (found >= classes)) & (found != IGNORED)
        _refuse(wrong, lambda i: f"has the value {found[i][wrong[i]][0]} in its mask, {_range(classes)}")
        return torch.from_numpy(found)

    return LabelForm(
        f"a mask {height} x {width} of class indices for each sample, {IGNORED} where none counts", convert
    )


def token_classes(classes: int, length: int) -> LabelForm:
    """A class per token: ``(N, T) int64``; -100 counts for nothing."""

    def convert(stored: Any) -> Tensor:
        found = _shaped(_integers(stored), (length,))
        wrong = ((found < 0) | (found >= classes)) & (found != IGNORED_TOKEN)
        _refuse(wrong, lambda i: f"has the token label {found[i][wrong[i]][0]}, {_range(classes)}")
        return torch.from_numpy(found)

    return LabelForm(f"{length} class indices for each sample, {IGNORED_TOKEN} where none counts", convert)


def sequences(symbols: int) -> LabelForm:
    """A text as numbers of symbols, of any length: a list of ``(L,) int64``; 0, the blank, is no symbol of a text."""

    def convert(stored: Any) -> list[Tensor]:
        found = []
        for sample, entry in enumerate(stored):
            text = np.asarray(entry.cpu() if isinstance(entry, Tensor) else entry)
            if text.size == 0:
                raise MisfitError("has an empty text", sample)
            if text.ndim != 1 or text.dtype.kind not in "iu":
                raise MisfitError(
                    f"has a label of shape {text.shape} and type {text.dtype}, not a list of integers", sample
                )
            text = text[text >= 0]  # padding
            if ((text < 1) | (text >= symbols)).any():
                raise MisfitError(
                    f"has the symbol {text[(text < 1) | (text >= symbols)][0]}, not one from 1 to {symbols - 1}", sample
                )
            found.append(torch.from_numpy(text.astype(np.int64)))
        return found

    return LabelForm(f"a list of symbols from 1 to {symbols - 1} for each sample", convert)


def boxes(classes: int, height: int, width: int) -> LabelForm:
    """Boxes ``(M, 4) float32`` as corners x1, y1, x2, y2 in pixels, and their classes ``(M,) int64``, per sample."""

    def convert(stored: Any) -> list[dict[str, Tensor]]:
        return [_boxes(entry, sample) for sample, entry in enumerate(stored)]

    def _boxes(entry: Any, sample: int) -> dict[str, Tensor]:
        if not isinstance(entry, Mapping) or not {"boxes", "labels"} <= set(entry):
            raise MisfitError(
                "has no boxes and labels", sample, fix="store {boxes: (M, 4), labels: (M,)} for each sample"
            )
        corners = np.asarray(entry["boxes"], dtype=np.float32).reshape(-1, 4)
        kinds = np.asarray(entry["labels"]).reshape(-1)
        if len(kinds) != len(corners):
            raise MisfitError(f"has {len(corners)} boxes and {len(kinds)} labels", sample)
        if len(kinds) and (kinds.dtype.kind not in "iu" or kinds.min() < 0 or kinds.max() >= classes):
            bad = kinds[(kinds < 0) | (kinds >= classes)] if kinds.dtype.kind in "iu" else kinds
            raise MisfitError(f"has label {bad[0]}, {_range(classes)}", sample, "labels")
        inverted = (corners[:, 2:] <= corners[:, :2]).any(1)
        outside = (corners[:, :2] < 0).any(1) | (corners[:, 2:] > np.array([width, height]) + 1e-3).any(1)
        for wrong, what in (
            (~np.isfinite(corners).all(1), "is not finite"),
            (inverted, "is empty or inverted"),
            (outside, f"is outside the image of {width} x {height}"),
        ):
            if wrong.any():
                raise MisfitError(f"has the box {corners[wrong.argmax()].tolist()}, which {what}", sample, "boxes")
        return {"boxes": torch.from_numpy(corners), "labels": torch.from_numpy(kinds.astype(np.int64))}

    return LabelForm("boxes (M, 4) as x1, y1, x2, y2 in pixels, and labels (M,), for each sample", convert)


def keypoints(count: int) -> LabelForm:
    """Places ``(N, K, 3) float32``: x, y in pixels, and whether the point is labelled; without it, all are."""

    def convert(stored: Any) -> Tensor:
        found = array_of(stored)
        if found.shape[1:] == (count, 2):
            found = np.concatenate([found, np.ones((*found.shape[:2], 1), found.dtype)], 2)
        found = _shaped(found, (count, 3))
        _refuse(~np.isfinite(found), lambda _: "has a keypoint that is NaN or infinite")
        return torch.from_numpy(found.astype(np.float32))

    return LabelForm(f"{count} keypoints (x, y) or (x, y, visible) for each sample", convert)


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


ANY = LabelForm("whatever the metrics take", _as_they_are)
"""For tasks of the user's own: only their metrics know what is right."""
