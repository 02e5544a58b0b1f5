"""Samples of a user's own torch Dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.core import DataError
from pipeline.core.arrays import Array


class DatasetSource:
    """A user's own map-style torch Dataset, whose items are ``inputs`` or ``(inputs, label)``."""

    def __init__(self, dataset: Any, where: str, input_count: int) -> None:
        self.where, self._dataset, self._input_count = where, dataset, input_count
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise DataError("must return a map-style torch Dataset, with __len__ and __getitem__", where=where)
        self.labelled = len(dataset) > 0 and self._item(0)[1] is not None

    def __len__(self) -> int:
        return len(self._dataset)

    def _item(self, index: int) -> tuple[tuple[Array, ...], int | None]:
        item = self._dataset[index]
        parts = tuple(item) if isinstance(item, tuple | list) else (item,)
        inputs, rest = parts[: self._input_count], parts[self._input_count :]
        if len(inputs) == 1 and isinstance(inputs[0], tuple | list):
            inputs = tuple(inputs[0])
        return tuple(_array(part) for part in inputs), int(rest[0]) if rest else None

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Array | None]:
        items = [self._item(index) for index in indices]
        try:
            inputs = tuple(np.stack(parts) for parts in zip(*(inputs for inputs, _ in items), strict=True))
        except ValueError:
            raise DataError(
                "gives samples of different sizes", where=self.where, fix="resize or pad them in __getitem__"
            ) from None
        return inputs, np.asarray([label for _, label in items]) if self.labelled else None


def _array(part: Any) -> Array:
    """A tensor or array as NumPy holds it, which has no bfloat16."""
    if isinstance(part, Tensor):
        part = part.detach().cpu()
        return np.asarray(part.float() if part.dtype == torch.bfloat16 else part)
    return np.asarray(part)
