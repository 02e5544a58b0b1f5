"""Copies of modules, also of those that keep tensors which they computed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def copy_module(module: nn.Module) -> nn.Module:
    """A deep copy; tensors that the module computed and keeps, which torch does not copy, are copied without history.

    >>> layer = nn.Linear(2, 2)
    >>> layer.doubled = layer.weight * 2
    >>> copy_module(layer).doubled.requires_grad
    False
    """
    computed = (tensor for part in module.modules() for tensor in _tensors(vars(part)) if not tensor.is_leaf)
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in computed}
    return copy.deepcopy(module, memo)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors in an attribute, and in the lists, tuples and dictionaries that it consists of."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
