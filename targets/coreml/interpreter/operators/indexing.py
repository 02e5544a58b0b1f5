"""Gathering and scattering by index. Negative indices count from the end; others out of range are refused."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.core import TargetError


def gather(
    x: Tensor,
    indices: Tensor,
    axis: Tensor | None = None,
    batch_dims: Tensor | None = None,
    validate_indices: Tensor | None = None,
) -> Tensor:
    """Slices of an axis (0 where absent) in the order of the indices, per batch where there are batch dimensions."""
    del validate_indices  # always checked
    along = (0 if axis is None else int(axis)) % x.ndim
    batches = 0 if batch_dims is None else int(batch_dims)
    chosen = _checked(indices, x.shape[along])
    if batches == 0:
        taken = x.index_select(along, chosen.flatten())
        return taken.reshape((*x.shape[:along], *indices.shape, *x.shape[along + 1 :]))
    batch_shape = x.shape[:batches]
    rows = x.flatten(0, batches - 1) if batches > 1 else x
    picks = chosen.reshape(rows.shape[0], *indices.shape[batches:])
    inner = torch.tensor(along - batches)
    gathered = torch.stack([gather(row, pick, inner) for row, pick in zip(rows, picks, strict=True)])
    return gathered.reshape((*batch_shape, *gathered.shape[1:]))


def gather_along_axis(
    x: Tensor, indices: Tensor, axis: Tensor | None = None, validate_indices: Tensor | None = None
) -> Tensor:
    """``out[…, i, …] = x[…, indices[…, i, …], …]`` along an axis, 0 where absent."""
    del validate_indices
    along = (0 if axis is None else int(axis)) % x.ndim
    return torch.gather(x, along, _checked(indices, x.shape[along]))


def gather_nd(
    x: Tensor, indices: Tensor, batch_dims: Tensor | None = None, validate_indices: Tensor | None = None
) -> Tensor:
    """``out[i…] = x[indices[i…]]``: the last axis of the indices holds positions in the leading axes of ``x``."""
    del validate_indices
    batches = 0 if batch_dims is None else int(batch_dims)
    positions = _positions(indices, x.shape[batches:])
    if batches:
        grid = torch.meshgrid(*(torch.arange(size) for size in x.shape[:batches]), indexing="ij")
        missing = positions[0].ndim - batches
        positions = [axis.reshape(*axis.shape, *(1,) * missing) for axis in grid] + positions
    return x[tuple(positions)]


def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: Tensor | None = None,
    mode: str = "add",
    validate_indices: Tensor | None = None,
) -> Tensor:
    """Slices of an axis (0 where absent) combined with updates."""
    del validate_indices
    along = (0 if axis is None else int(axis)) % data.ndim
    shape = [1] * data.ndim
    shape[along] = -1
    spread = _checked(indices, data.shape[along]).reshape(shape).expand(updates.shape)
    return _combine(data, along, spread, updates, mode)


def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: Tensor | None = None,
    mode: str = "add",
    validate_indices: Tensor | None = None,
) -> Tensor:
    """Elements along an axis (0 where absent) combined with updates, at an index of their own."""
    del validate_indices
    along = (0 if axis is None else int(axis)) % data.ndim
    return _combine(data, along, _checked(indices, data.shape[along]), updates, mode)


def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: Tensor | None = None
) -> Tensor:
    """Slices at positions in the leading axes combined with updates."""
    del validate_indices
    depth = indices.shape[-1]
    positions = _positions(indices, data.shape)
    row = torch.zeros_like(positions[0])
    for position, size in zip(positions, data.shape[:depth], strict=True):
        row = row * size + position
    width = math.prod(data.shape[depth:])
    rows = data.reshape(-1, width)
    spread = row.reshape(-1, 1).expand(-1, width)
    return _combine(rows, 0, spread, updates.reshape(-1, width), mode).reshape(data.shape)


def _combine(data: Tensor, axis: int, indices: Tensor, updates: Tensor, mode: str) -> Tensor:
    """Every update combined with the element that its index points to; equal indices all count."""
    if mode == "update":
        return data.scatter(axis, indices, updates)
    if mode in ("add", "sub"):
        return data.scatter_add(axis, indices, updates if mode == "add" else -updates)
    if mode in ("mul", "max", "min"):
        reduce = {"mul": "prod", "max": "amax", "min": "amin"}[mode]
        return data.scatter_reduce(axis, indices, updates, reduce)
    if mode == "div":
        return data / torch.ones_like(data).scatter_reduce(axis, indices, updates, "prod")
    raise TargetError(f"scatter has no mode {mode!r}")


def _positions(indices: Tensor, shape: torch.Size) -> list[Tensor]:
    """The last axis of the indices taken apart, each checked against the axis that it points into."""
    return [_checked(index, size) for index, size in zip(indices.unbind(-1), shape, strict=False)]


def _checked(indices: Tensor, size: int) -> Tensor:
    wrapped = indices.long()
    wrapped = torch.where(wrapped < 0, wrapped + size, wrapped)
    if wrapped.numel() and not (int(wrapped.min()) >= 0 and int(wrapped.max()) < size):
        raise TargetError(f"an index lies outside an axis of {size} elements")
    return wrapped
