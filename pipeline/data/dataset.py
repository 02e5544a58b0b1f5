"""Samples of a user's own torch Dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.core import DataError, EdgewrightError
from pipeline.core.arrays import Array
from pipeline.core.callables import failure_of
from pipeline.data.labels import numpy_of
from pipeline.data.samples import Source

_RETURN = "return (input, label) from __getitem__, or the input alone"
_LABELS = ("label", "labels", "target")
"""Where a sample that is a mapping has its label."""


class DatasetSource(Source):
    """A user's own map-style torch Dataset, whose items are ``inputs`` or ``(inputs, label)``.

    Args:
        inputs: The names of the model's inputs, in order.
        collate: Makes a batch ``(inputs, labels)`` of items, as a torch ``DataLoader``'s does; by default items are
            stacked.
    """

    def __init__(
        self, dataset: Any, where: str, inputs: Sequence[str], collate: Callable[[list[Any]], Any] | None = None
    ) -> None:
        self.where, self._dataset, self._inputs, self._collate = where, dataset, tuple(inputs), collate
        self.labels_where = f"{where}: labels"
        has_methods = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        if isinstance(dataset, Mapping | str | bytes) or not has_methods:
            raise DataError(
                f"is a {type(dataset).__name__}, not a map-style torch Dataset",
                where=where,
                fix="return an object with __len__ and __getitem__(index)",
            )
        try:
            self._length = len(dataset)
        except (Exception, SystemExit) as error:  # the user's code may fail in any way
            raise DataError(f"__len__ fails: {failure_of(error)}", where=where, fix="correct that line") from error
        self.labelled = self._length > 0 and self._batch([0])[1] is not None

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
        try:
            inputs = tuple(np.stack(arrays) for arrays in zip(*(inputs for inputs, _ in parts), strict=True))
        except ValueError:
            raise DataError(
                "gives samples of different sizes", where=self.where, fix="resize or pad them in __getitem__"
            ) from None
        labels = [label for _, label in parts]
        given = {label is not None for label in labels}
        if len(given) > 1:
            raise _some_labels(self.where)
        return inputs, labels if given == {True} else None

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
        if any(len(array) != len(items) for array in inputs):
            problem = f"collate gives {len(inputs[0])} samples for {len(items)} items"
            raise DataError(problem, where=self.where, fix="return one row per item")
        return inputs, _per_sample(labels, len(items), self.where)

    def _parts(self, item: Any, index: int) -> tuple[tuple[Array, ...], Any]:
        """Inputs and label, or None, of a sample or a batch: ``inputs``, ``(inputs, label)`` or flat."""
        parts = tuple(item) if isinstance(item, tuple | list) else (item,)
        if not parts:
            raise DataError(f"sample {index} is empty", where=self.where, fix=_RETURN)
        if isinstance(parts[0], Mapping):
            own = next((parts[0][name] for name in _LABELS if name in parts[0]), None)
            return self._named(parts[0], index), parts[1] if len(parts) > 1 else own
        inputs, rest = parts[: len(self._inputs)], parts[len(self._inputs) :]
        if isinstance(parts[0], tuple | list) and len(parts) <= 2:
            inputs, rest = tuple(parts[0]), parts[1:]
        return tuple(self._array(part, index) for part in inputs), rest[0] if rest else None

    def _named(self, inputs: Mapping[str, Any], index: int) -> tuple[Array, ...]:
        missing = next((name for name in self._inputs if name not in inputs), None)
        if missing is not None:
            problem = f"sample {index} has no input {missing!r}; it has {', '.join(map(str, inputs))}"
            raise DataError(problem, where=self.where, fix="name the inputs in the dataset as in model.inputs")
        return tuple(self._array(inputs[name], index) for name in self._inputs)

    def _array(self, part: Any, index: int) -> Array:
        """A tensor or array as NumPy holds it."""
        try:
            array = numpy_of(part)
        except (TypeError, ValueError):  # a sparse tensor, or a list of lists of different lengths
            array = np.asarray(None)
        if array.dtype.kind not in "biuf":
            what = array.dtype if isinstance(part, np.ndarray | str) else f"a {type(part).__name__}"
            raise DataError(f"sample {index} holds {what}, not numbers of one size", where=self.where, fix=_RETURN)
        return array


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
