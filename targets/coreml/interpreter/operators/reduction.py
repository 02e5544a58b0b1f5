"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Reduce = Callable[[Tensor, tuple[int, ...], bool], Tensor]
Reduction = Callable[..., Tensor]


def over_axes(reduce: Reduce) -> Reduction:
    """The MIL form of a reduction: over the given axes, over all where absent, keeping them with size 1 if asked."""

    def reduction(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
        chosen = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes.tolist()]
        return reduce(x, tuple(chosen), keep_dims is not None and bool(keep_dims))

    return reduction


def mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """The mean; of integers, truncated towards zero."""
    return torch.mean(x.float(), axes, keep).to(x.dtype)


def product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """The product, one axis after the other."""
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep)
    return x


def argmax(
    x: Tensor, axis: Tensor | None = None, keep_dims: Tensor | None = None, output_dtype: str = "int32"
) -> Tensor:
    """Index of the largest element along an axis, the last where absent; the first of equals."""
    del output_dtype  # the output's type in the file says the same
    return torch.argmax(x, -1 if axis is None else int(axis), keep_dims is not None and bool(keep_dims))


def argmin(
    x: Tensor, axis: Tensor | None = None, keep_dims: Tensor | None = None, output_dtype: str = "int32"
) -> Tensor:
    """Index of the smallest element along an axis, the last where absent; the first of equals."""
    del output_dtype
    return torch.argmin(x, -1 if axis is None else int(axis), keep_dims is not None and bool(keep_dims))
