"""Samples of a user's own torch Dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
    default_convert,
)

from pipeline.core import DataError, EdgewrightError, TensorSpec, did_you_mean
from pipeline.core.arrays import Array
from pipeline.core.callables import failure_of
from pipeline.data.folder import mode_of
from pipeline.data.images import as_bytes, turned
from pipeline.data.labels import numpy_of
from pipeline.data.rows import column
from pipeline.data.samples import Source

_RETURN = "return (input, label) from __getitem__, or the input alone"
LABEL_NAMES = ("label", "labels", "target", "targets", "y", "class")
"""Where a sample that is a mapping, or a frame, has its label, unless the recipe names it."""
_SHOWN = 10
"""Names, at most, in a note."""
_INPUT_NAMES = ("image", "images", "img", "pixel_values", "input", "inputs", "x", "audio", "input_values", "data")
"""Where a mapping has the input of a model with one, if nothing has the input's own name."""


class DatasetSource(Source):
    """A user's own map-style torch Dataset, whose items are ``inputs`` or ``(inputs, label)``.

    Args:
        specs: The model's inputs.
        collate: Makes a batch ``(inputs, labels)`` of items, as a torch ``DataLoader``'s does; by default items are
            stacked.
        keys: Where items that are mappings have each input; by default under the inputs' own names.
        label: Where they have the label; by default under one of `LABEL_NAMES`.
        classes: The names of the model's classes. Numbers of a Dataset that names its own (``classes``, or a
            ``ClassLabel`` among its ``features``) are translated.
    """

    def __init__(
        self,
        dataset: Any,
        where: str,
        specs: Sequence[TensorSpec],
        collate: Callable[[list[Any]], Any] | None = None,
        *,
        keys: Sequence[str] = (),
        label: str | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        dataset, collate = unwrapped(dataset, where, collate)
        self.where, self._dataset, self._collate = where, dataset, collate
        self._specs, self._keys, self._label = tuple(specs), tuple(keys), label
        self.labels_where = f"{where}: {label or 'labels'}"
        has_methods = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        if isinstance(dataset, Mapping | str | bytes) or not has_methods:
            parts = f" of {', '.join(map(str, dataset))}" if isinstance(dataset, Mapping) else ""
            raise DataError(
                f"is a {type(dataset).__name__}{parts:.200}, not a map-style torch Dataset",
                where=where,
                fix="return an object with __len__ and __getitem__(index), such as one part of a DatasetDict",
            )
        try:
            self._length = len(dataset)
        except (Exception, SystemExit) as error:  # the user's code may fail in any way
            raise DataError(f"__len__ fails: {failure_of(error)}", where=where, fix="correct that line") from error
        own = class_names(dataset, label)
        self.classes = tuple(classes) or own
        self._numbers = _translation(own, self.classes, where)
        self.labelled = self._length > 0 and self._batch([0])[1] is not None
        first = self._fetched(0) if self._length and not self.labelled else None
        if isinstance(first, Mapping):
            self.notes = unread(where, [str(key) for key in first], label)

    def __len__(self) -> int:
        return self._length

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Any]:
        inputs, labels = self._batch(indices)
        if (labels is not None) != self.labelled and len(indices) > 0:
            raise _some_labels(self.where)
        return inputs, labels

    def _batch(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Any]:
        items = [self._fetched(index) for index in indices]
        if self._collate is not None:
            return self._collated(items, indices)
        parts = [self._parts(item, index) for item, index in zip(items, indices, strict=True)]
        odd = next((i for i, (inputs, _) in enumerate(parts) if len(inputs) != len(parts[0][0])), None)
        if odd is not None:
            problem = f"sample {indices[odd]} has {len(parts[odd][0])} inputs, an earlier one {len(parts[0][0])}"
            raise DataError(problem, where=self.where, fix=_RETURN)
        inputs = tuple(column(arrays) for arrays in zip(*(inputs for inputs, _ in parts), strict=True))
        labels = [self._numbered(label, index) for (_, label), index in zip(parts, indices, strict=True)]
        given = {label is not None for label in labels}
        if len(given) > 1:
            raise _some_labels(self.where)
        return inputs, labels if given == {True} else None

    def _numbered(self, label: Any, index: int) -> Any:
        """A class's number as the model has it, of a Dataset whose own numbers are others."""
        if not self._numbers or isinstance(label, str) or label is None:
            return label
        number = numpy_of(label)
        if number.size != 1 or number.dtype.kind not in "iu" or not 0 <= number.item() < len(self._numbers):
            problem = f"sample {index} has the label {label!r:.80}, not a number of the {len(self._numbers)} classes"
            raise DataError(problem, where=self.labels_where, fix="return the index of its class")
        return self._numbers[number.item()]

    def _fetched(self, index: int) -> Any:
        """What the user's code gives for one sample."""
        try:
            return self._dataset[index]
        except EdgewrightError:
            raise
        except (Exception, SystemExit) as error:  # the user's code may fail in any way
            raise DataError(
                f"sample {index} fails: {failure_of(error)}", where=self.where, fix="correct that line"
            ) from error

    def _collated(self, items: list[Any], indices: Sequence[int]) -> tuple[tuple[Array, ...], Any]:
        """A batch ``(inputs, labels)``, or the inputs alone, as the user's own ``collate`` makes it."""
        assert self._collate is not None
        try:
            batch = self._collate(items)
        except (Exception, SystemExit) as error:  # the user's code may fail in any way
            problem = f"collate fails on samples {', '.join(map(str, indices[:3]))} …: {failure_of(error)}"
            raise DataError(problem, where=self.where, fix="correct that line") from error
        inputs, labels = self._parts(batch, indices[0])
        if not inputs or any(len(array) != len(items) for array in inputs):
            problem = f"collate gives {len(inputs[0])} samples for {len(items)} items"
            raise DataError(problem, where=self.where, fix="return one row per item")
        separate = _per_sample(labels, len(items), self.where)
        if self._numbers and separate is not None:
            separate = [self._numbered(label, index) for label, index in zip(separate, indices, strict=True)]
        return inputs, separate

    def _parts(self, item: Any, index: int) -> tuple[tuple[Array, ...], Any]:
        """Inputs and label, or None, of a sample or a batch: ``inputs``, ``(inputs, label)`` or flat."""
        parts = tuple(item) if isinstance(item, tuple | list) else (item,)
        if not parts:
            raise DataError(f"sample {index} is empty", where=self.where, fix=_RETURN)
        if isinstance(parts[0], Mapping):
            return self._named(parts[0], index), parts[1] if len(parts) > 1 else self._own_label(parts[0], index)
        count = len(self._specs)
        inputs, rest = parts[:count], parts[count:]
        if isinstance(parts[0], tuple | list) and len(parts) <= 2:
            inputs, rest = tuple(parts[0]), parts[1:]
        arrays = (self._array(part, spec, index) for part, spec in zip_longest(inputs, self._specs[: len(inputs)]))
        return tuple(arrays), rest[0] if rest else None

    def _own_label(self, item: Mapping[str, Any], index: int) -> Any:
        """The label in a mapping, or None."""
        if self._label is None:
            return next((item[name] for name in LABEL_NAMES if name in item), None)
        if self._label not in item:
            problem = f"sample {index} has no {self._label!r}; {did_you_mean(self._label, map(str, item))}"
            raise DataError(problem, where=self.where, fix="name its label in the recipe: labels: …, or null for none")
        return item[self._label]

    def _named(self, item: Mapping[str, Any], index: int) -> tuple[Array, ...]:
        """The inputs in a mapping: under their own names or, of a model with one, the only thing that can be meant."""
        keys = self._keys or tuple(spec.name for spec in self._specs)
        missing = next((name for name in keys if name not in item), None)
        if missing is not None and not self._keys and len(keys) == 1:
            others = [name for name in item if name not in (*LABEL_NAMES, self._label)]
            usual = [name for name in others if name in _INPUT_NAMES]
            keys = tuple(usual if len(usual) == 1 else others) or keys
            missing = None if len(keys) == 1 and keys[0] in item else missing
        if missing is not None:
            raise DataError(
                f"sample {index} has no input {missing!r}; it has {', '.join(map(str, item))}",
                where=self.where,
                fix="name its inputs in the recipe: inputs: [...], or in the dataset as in model.inputs",
            )
        return tuple(self._array(item[name], spec, index) for name, spec in zip(keys, self._specs, strict=False))

    def _array(self, part: Any, spec: TensorSpec | None, index: int) -> Array:
        """A tensor, an array or a decoded image as NumPy holds it."""
        try:
            array = numpy_of(self._pixels(part, spec, index) if type(part).__module__.startswith("PIL.") else part)
        except (TypeError, ValueError):  # a sparse tensor, or a list of lists of different lengths
            array = np.asarray(None)
        if array.dtype.kind not in "biuf":
            what = array.dtype if isinstance(part, np.ndarray | str) else f"a {type(part).__name__}"
            raise DataError(f"sample {index} holds {what}, not numbers of one size", where=self.where, fix=_RETURN)
        return array

    def _pixels(self, image: Any, spec: TensorSpec | None, index: int) -> Array:
        """An image that Pillow has decoded, with the input's channels."""
        if image.mode in ("I", "F", "LAB"):
            problem = f"sample {index} is an image of Pillow's mode {image.mode!r}, not of 8-bit or 16-bit colours"
            raise DataError(problem, where=self.where, fix="return its values as an array")
        pixels = as_bytes(turned(image) if self.upright else image)
        return np.asarray(pixels.convert(mode_of(spec.shape[0] if spec is not None and spec.shape else 1)))


def unread(where: str, names: Sequence[str], label: str | None) -> tuple[str, ...]:
    """A note on what rows without a label hold, where one of their names may be meant as the label."""
    if label is not None or len(names) < 2:
        return ()
    shown = ", ".join(names[:_SHOWN])
    return (f"{where}: no label is read of {shown}; labels: … names one, and labels: null says that there is none",)


def unwrapped(dataset: Any, where: str, collate: Any) -> tuple[Any, Any]:
    """The Dataset of a torch ``DataLoader``, its samples in their own order, and how it makes batches.

    Raises:
        DataError: Its sampler chooses samples in a way of its own, or its Dataset is iterable.
    """
    if not isinstance(dataset, DataLoader):
        return dataset, collate
    if isinstance(dataset.dataset, IterableDataset):
        problem = "is a DataLoader of an IterableDataset, whose samples cannot be read twice in the same order"
        raise DataError(problem, where=where, fix="return a Dataset with __len__ and __getitem__(index)")
    own = None if dataset.collate_fn in (default_collate, default_convert) else dataset.collate_fn
    sampler = dataset.sampler
    if isinstance(sampler, SubsetRandomSampler):
        return Subset(dataset.dataset, sorted(sampler.indices)), collate or own
    every = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement and len(sampler) == len(dataset.dataset)  # type: ignore[arg-type]  # torch's Dataset declares no __len__
    )
    if not every:
        problem = f"is a DataLoader with a {type(sampler).__name__}, which chooses samples in a way of its own"
        raise DataError(problem, where=where, fix="return a Dataset of the samples to use")
    return dataset.dataset, collate or own


def class_names(dataset: Any, label: str | None) -> tuple[str, ...]:
    """What the numbers of a Dataset's labels stand for: Hugging Face's ``ClassLabel``, or torchvision's ``classes``."""
    features = getattr(dataset, "features", None)
    found: Any = getattr(dataset, "classes", ())
    if isinstance(features, Mapping):
        key = label or next((name for name in LABEL_NAMES if name in features), "")
        found = getattr(features.get(key), "names", None)
    listed = isinstance(found, list | tuple) and all(isinstance(name, str) for name in found)
    return tuple(found) if listed else ()


def _translation(own: tuple[str, ...], classes: tuple[str, ...], where: str) -> list[int]:
    """The model's number of each of a Dataset's classes; none where they are the same, or called in another way."""
    if own == classes or not set(own) & set(classes):
        return []
    odd = next((name for name in own if name not in classes), None)
    if odd is not None:
        problem = f"has the class {odd!r}, which is none of the model's; {did_you_mean(odd, classes)}"
        raise DataError(problem, where=where, fix="list every class in model.classes")
    return [classes.index(name) for name in own]


def _per_sample(labels: Any, count: int, where: str) -> Any:
    """A batch's labels, sample by sample where ``collate`` has put the parts of all samples together."""
    if isinstance(labels, Mapping):
        parts = {name: _per_sample(part, count, where) for name, part in labels.items()}
        return [{name: part[index] for name, part in parts.items()} for index in range(count)]
    if labels is not None and len(labels) != count:
        problem = f"collate gives {len(labels)} labels for {count} items"
        raise DataError(problem, where=where, fix="return one entry per item, or a mapping of such")
    return labels


def _some_labels(where: str) -> DataError:
    return DataError("gives a label for some samples only", where=where, fix="give all of them one")
