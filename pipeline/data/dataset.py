"""Samples of a user's own torch Dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.core import DataError, EdgewrightError
from pipeline.core.arrays import Array
from pipeline.core.callables import failure_of
from pipeline.data.labels import class_indices

_RETURN = "return (input, label) from __getitem__, or the input alone"


class DatasetSource:
    """A user's own map-style torch Dataset, whose items are ``inputs`` or ``(inputs, label)``."""

    def __init__(self, dataset: Any, where: str, input_count: int) -> None:
        self.where, self._dataset, self._input_count = where, dataset, input_count
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
        self.labelled = self._length > 0 and self._item(0)[1] is not None

    def __len__(self) -> int:
        return self._length

    def _item(self, index: int) -> tuple[tuple[Array, ...], Any]:
        """Inputs and label, or None, of one sample."""
        try:
            item = self._dataset[index]
        except EdgewrightError:
            raise
        except (Exception, SystemExit) as error:  # the user's code may fail in any way
            raise DataError(
                f"sample {index} fails: {failure_of(error)}", where=self.where, fix="correct that line"
            ) from error
        parts = tuple(item) if isinstance(item, tuple | list) else (item,)
        inputs, rest = parts[: self._input_count], parts[self._input_count :]
        if len(inputs) == 1 and isinstance(inputs[0], tuple | list):
            inputs = tuple(inputs[0])
        return tuple(self._array(part, index) for part in inputs), rest[0] if rest else None

    def _array(self, part: Any, index: int) -> Array:
        """A tensor or array as NumPy holds it, which has no bfloat16."""
        if isinstance(part, Tensor):
            part = part.detach().cpu()
            part = part.float() if part.dtype == torch.bfloat16 else part
        try:
            array = np.asarray(part)
        except (TypeError, ValueError):  # a sparse tensor, or a list of lists of different lengths
            array = np.asarray(None)
        if array.dtype.kind not in "biuf":
            what = array.dtype if isinstance(part, np.ndarray | str) else f"a {type(part).__name__}"
            raise DataError(f"sample {index} holds {what}, not numbers of one size", where=self.where, fix=_RETURN)
        return array

    def _label(self, label: Any, index: int) -> Array:
        """The label ``(1,)`` of a sample, when others have one."""
        where = f"{self.where}: the label of sample {index}"
        found = np.asarray(label.detach().cpu() if isinstance(label, Tensor) else label)
        if found.size != 1:
            fix = f"{_RETURN}, where the label is an integer; labels.argmax() of a one-hot vector"
            raise DataError(f"has the shape {found.shape}, not one number", where=where, fix=fix)
        return class_indices(found.reshape(1), where)

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Array | None]:
        items = [self._item(index) for index in indices]
        try:
            inputs = tuple(np.stack(parts) for parts in zip(*(inputs for inputs, _ in items), strict=True))
        except ValueError:
            raise DataError(
                "gives samples of different sizes", where=self.where, fix="resize or pad them in __getitem__"
            ) from None
        if not self.labelled:
            if any(label is not None for _, label in items):
                raise DataError("gives a label for some samples only", where=self.where, fix="give all of them one")
            return inputs, None
        labels = [self._label(label, index) for index, (_, label) in zip(indices, items, strict=True)]
        return inputs, np.concatenate(labels)
