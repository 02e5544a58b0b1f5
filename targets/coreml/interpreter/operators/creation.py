"""Operators that make or order elements: constants, ranges, masks, sorting."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from pipeline.core import TargetError
from targets.coreml.interpreter.program import DATA_TYPES, MAX_ELEMENTS


def bounded(shape: Iterable[int]) -> tuple[int, ...]:
    """A shape that a program computes, if a tensor of it fits in memory.

    Raises:
        TargetError: It has more than 2^29 elements, or a negative size.
    """
    sizes = tuple(shape)
    if min(sizes, default=0) < 0 or math.prod(sizes) > MAX_ELEMENTS:
        raise TargetError(f"asks for a tensor of shape {sizes}")
    return sizes


def fill(shape: Tensor, value: Tensor | None = None) -> Tensor:
    """A tensor of one value, 0.0 where absent."""
    filling = torch.zeros(()) if value is None else value
    return filling.expand(bounded(shape.tolist()))


def fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    """A tensor of one value, 0.0 where absent, in the shape of another."""
    return (torch.zeros(()) if value is None else value).expand(ref_tensor.shape)


def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    """``start, start + step, …`` up to, and without, ``end``."""
    count = max(0, math.ceil((end.item() - start.item()) / step.item()))
    bounded((count,))
    return start + step * torch.arange(count, dtype=start.dtype)


def one_hot(
    indices: Tensor,
    one_hot_vector_size: Tensor,
    axis: Tensor | None = None,
    on_value: Tensor | None = None,
    off_value: Tensor | None = None,
) -> Tensor:
    """``on_value`` (1) at each index and ``off_value`` (0) elsewhere, along a new axis, the last where absent."""
    depth = int(one_hot_vector_size)
    bounded((*indices.shape, depth))
    hot = indices.unsqueeze(-1) == torch.arange(depth)
    on = torch.tensor(1, dtype=torch.int32) if on_value is None else on_value
    off = torch.tensor(0, dtype=torch.int32) if off_value is None else off_value
    return torch.where(hot, on, off).movedim(-1, -1 if axis is None else int(axis))


def non_zero(x: Tensor) -> Tensor:
    """The index ``(N, rank)`` of every element that is not zero."""
    return torch.nonzero(x)


def cumsum(
    x: Tensor, axis: Tensor | None = None, exclusive: Tensor | None = None, reverse: Tensor | None = None
) -> Tensor:
    """Running sum along an axis, 0 where absent; exclusive, without the element itself; reverse, from the end."""
    along = 0 if axis is None else int(axis)
    backwards = reverse is not None and bool(reverse)
    data = x.flip(along) if backwards else x
    total = torch.cumsum(data, along, dtype=x.dtype)
    if exclusive is not None and bool(exclusive):
        total = total - data
    return total.flip(along) if backwards else total


def band_part(x: Tensor, lower: Tensor | None = None, upper: Tensor | None = None) -> Tensor:
    """Matrices with zeros beyond ``lower`` diagonals below and ``upper`` above the main one; negative keeps all."""
    rows, columns = torch.arange(x.shape[-2]).unsqueeze(-1), torch.arange(x.shape[-1])
    below, above = -1 if lower is None else int(lower), -1 if upper is None else int(upper)
    keep = torch.ones(x.shape[-2:], dtype=torch.bool)
    if below >= 0:
        keep &= rows - columns <= below
    if above >= 0:
        keep &= columns - rows <= above
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype))


def argsort(x: Tensor, axis: Tensor | None = None, ascending: Tensor | None = None) -> Tensor:
    """Indices that sort an axis, the last where absent; descending unless asked otherwise; equals keep their order."""
    descending = ascending is None or not bool(ascending)
    return torch.argsort(x, dim=-1 if axis is None else int(axis), descending=descending, stable=True)


def topk(
    x: Tensor,
    k: Tensor | None = None,
    axis: Tensor | None = None,
    ascending: Tensor | None = None,
    sort: Tensor | None = None,
    return_indices: Tensor | None = None,
    output_indices_dtype: str = "int32",
) -> Tensor | tuple[Tensor, Tensor]:
    """The ``k`` largest (ascending: smallest) elements of an axis, in order, and their indices; -1 takes all."""
    del sort, output_indices_dtype  # always sorted; the file states the indices' type
    along = (-1 if axis is None else int(axis)) % x.ndim
    indices = argsort(x, torch.tensor(along), ascending)
    count = 1 if k is None else int(k)
    indices = indices.narrow(along, 0, x.shape[along] if count == -1 else count)
    values = torch.gather(x, along, indices)
    if return_indices is not None and not bool(return_indices):
        return values
    return values, indices


def make_list(
    elem_shape: tuple[Tensor | str, ...] | Tensor | str,
    init_length: Tensor | None = None,
    dynamic_length: Tensor | None = None,
    dtype: str = "fp32",
) -> tuple[Tensor, ...]:
    """A list of empty elements; elements of unknown shape are empty tensors until they are written."""
    del dynamic_length
    sizes = elem_shape if isinstance(elem_shape, tuple) else (elem_shape,)
    shape = tuple(0 if isinstance(size, str) else int(size) for size in sizes)
    held = DATA_TYPES[{"fp16": "FLOAT16", "fp32": "FLOAT32"}.get(dtype, dtype.upper())].held
    (count,) = bounded((1 if init_length is None else int(init_length),))
    return (torch.zeros(bounded(shape), dtype=held),) * count


def list_length(ls: tuple[Tensor, ...]) -> Tensor:
    """The number of elements."""
    return torch.tensor(len(ls), dtype=torch.int32)


def list_write(ls: tuple[Tensor, ...], index: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """The list with one element replaced; it grows where the index is past its end."""
    return list_scatter(ls, index.reshape(1), value.unsqueeze(0))


def list_read(ls: tuple[Tensor, ...], index: Tensor) -> Tensor:
    """One element."""
    return ls[int(index)]


def list_gather(ls: tuple[Tensor, ...], indices: Tensor) -> Tensor:
    """Chosen elements, stacked."""
    return torch.stack([ls[index] for index in indices.tolist()])


def list_scatter(ls: tuple[Tensor, ...], indices: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """The list with chosen elements replaced; it grows where an index is past its end."""
    written = list(ls)
    for index, element in zip(indices.tolist(), value, strict=True):
        bounded((index + 1, *element.shape))
        written += [torch.zeros_like(element)] * (index + 1 - len(written))
        written[index] = element
    return tuple(written)
