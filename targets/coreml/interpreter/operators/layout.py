"""Operators that move, cut or join elements without computing with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def identity(x: Tensor) -> Tensor:
    """``x``."""
    return x


def shape(x: Tensor) -> Tensor:
    """The sizes of the dimensions, as integers."""
    return torch.tensor(x.shape, dtype=torch.int32)


def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """The same elements in another shape.

    A 0 takes over a dimension of ``x``, counted from the right (1 where there is none); one -1 takes what remains.
    """
    wanted = shape.tolist()
    for index, size in enumerate(wanted):
        if size == 0:
            source = x.ndim - (len(wanted) - index)
            wanted[index] = x.shape[source] if source >= 0 else 1
    return x.reshape(wanted)


def reshape_like(
    x: Tensor,
    ref_tensors: tuple[Tensor, ...],
    begins: tuple[Tensor, ...],
    ends: tuple[Tensor, ...],
    end_masks: tuple[Tensor, ...],
) -> Tensor:
    """The same elements in a shape put together from parts of other tensors' shapes."""
    wanted: list[int] = []
    for ref, begin, end, to_end in zip(parts(ref_tensors), parts(begins), parts(ends), parts(end_masks), strict=True):
        wanted += ref.shape[int(begin) : None if bool(to_end) else int(end)]
    return x.reshape(wanted)


def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    """A dimension of size 1 at each of the axes of the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Without the dimensions of size 1 among the axes, all where absent."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def transpose(x: Tensor, perm: Tensor) -> Tensor:
    """Dimensions in another order."""
    return x.permute(perm.tolist())


def flatten2d(x: Tensor, axis: Tensor | None = None) -> Tensor:
    """A matrix: the dimensions before the axis (1 where absent) and those from it on."""
    split = 1 if axis is None else int(axis)
    return x.reshape(math.prod(x.shape[:split]), math.prod(x.shape[split:]))


def concat(values: tuple[Tensor, ...], axis: Tensor, interleave: Tensor | None = None) -> Tensor:
    """Tensors joined along an axis; interleaved, their slices alternate. Scalars become a vector."""
    tensors = parts(values)
    if tensors[0].ndim == 0:
        return torch.stack(tensors)
    along = int(axis) % tensors[0].ndim
    if interleave is not None and bool(interleave):
        return torch.stack(tensors, along + 1).flatten(along, along + 1)
    return torch.cat(tensors, along)


def stack(values: tuple[Tensor, ...], axis: Tensor) -> Tensor:
    """Tensors joined along a new axis."""
    return torch.stack(parts(values), int(axis))


def split(
    x: Tensor, axis: Tensor, num_splits: Tensor | None = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Parts of the given sizes, or ``num_splits`` equal ones."""
    along = int(axis)
    if split_sizes is not None:
        return tuple(torch.split(x, split_sizes.tolist(), along))
    assert num_splits is not None  # the definition asks for one of the two
    return tuple(torch.split(x, x.shape[along] // int(num_splits), along))


def tile(x: Tensor, reps: Tensor) -> Tensor:
    """``x`` repeated along each dimension."""
    return x.repeat(reps.tolist())


def pad(x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | None = None) -> Tensor:
    """The last ``len(pad) / 2`` dimensions enlarged by a constant, by mirroring without the edge, or by the edge."""
    amounts = pad.tolist()
    if mode == "constant":
        pairs = zip(amounts[::2], amounts[1::2], strict=True)
        flat = [amount for pair in reversed(list(pairs)) for amount in pair]
        return functional.pad(x, flat, value=0.0 if constant_val is None else constant_val.item())
    first = x.ndim - len(amounts) // 2
    for offset in range(len(amounts) // 2):
        axis, before, after = first + offset, amounts[2 * offset], amounts[2 * offset + 1]
        size = x.shape[axis]
        positions = torch.arange(-before, size + after)
        positions = reflect(positions, 0, size - 1) if mode == "reflect" else positions.clamp(0, size - 1)
        x = x.index_select(axis, positions)
    return x


def reflect(positions: Tensor, low: float, high: float) -> Tensor:
    """Positions mirrored at two ends until they lie between them; all are ``low`` where the ends coincide.

    >>> reflect(torch.tensor([-2, -1, 0, 1, 2, 3, 4]), 0, 2)
    tensor([2, 1, 0, 1, 2, 1, 0])
    """
    span = high - low
    if span <= 0:
        return torch.full_like(positions, low)
    offset = (positions - low) % (2 * span)
    return low + torch.minimum(offset, 2 * span - offset)


def slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """``x[begin:end:stride]`` per dimension, as in NumPy; a masked end is open, a squeezed dimension is indexed."""
    squeezed = []
    for axis, size in enumerate(x.shape):
        first: int | None = int(begin[axis])
        last: int | None = int(end[axis])
        step = 1 if stride is None else int(stride[axis])
        if squeeze_mask is not None and bool(squeeze_mask[axis]):
            x = x.narrow(axis, int(begin[axis]) % size, 1)
            squeezed.append(axis)
            continue
        if begin_mask is not None and bool(begin_mask[axis]):
            first = None
        if end_mask is not None and bool(end_mask[axis]):
            last = None
        positions = range(*slice(first, last, step).indices(size))
        if len(positions) != size or step < 0:
            x = _take(x, axis, positions)
    return x.squeeze(tuple(squeezed)) if squeezed else x


def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """``x`` with the elements that `slice_by_index` would return replaced."""
    places = torch.arange(x.numel()).reshape(x.shape)
    replaced = slice_by_index(places, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    return x.flatten().index_copy(0, replaced.flatten(), update.to(x.dtype).flatten()).reshape(x.shape)


def _take(x: Tensor, axis: int, positions: range) -> Tensor:
    if positions.step == 1:
        return x.narrow(axis, positions.start, len(positions)) if len(positions) else x.narrow(axis, 0, 0)
    return x.index_select(axis, torch.tensor(list(positions), dtype=torch.int64))


def slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    """``size`` elements of each dimension from ``begin`` on; -1 takes the rest."""
    for axis, (first, count) in enumerate(zip(begin.tolist(), size.tolist(), strict=True)):
        first %= max(x.shape[axis], 1)
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


def reverse(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """The order of elements reversed along the axes, all where absent."""
    return x.flip(tuple(range(x.ndim)) if axes is None else tuple(axes.tolist()))


def reverse_sequence(
    x: Tensor, lengths: Tensor, seq_axis: Tensor | None = None, batch_axis: Tensor | None = None
) -> Tensor:
    """The first ``lengths[i]`` elements of each sequence reversed; both axes are 0 where absent."""
    along = (0 if seq_axis is None else int(seq_axis)) % x.ndim
    batch = (0 if batch_axis is None else int(batch_axis)) % x.ndim
    rows = []
    for row, length in zip(x.unbind(batch), lengths.tolist(), strict=True):
        axis = along - (along > batch)
        rows.append(
            torch.cat(
                [row.narrow(axis, 0, length).flip(axis), row.narrow(axis, length, row.shape[axis] - length)], axis
            )
        )
    return torch.stack(rows, batch)


def depth_to_space(x: Tensor, block_size: Tensor) -> Tensor:
    """``(N, C·b², H, W) -> (N, C, H·b, W·b)``; the channel counts through the block first, as in TensorFlow."""
    n, c, h, w = x.shape
    b = int(block_size)
    return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


def space_to_depth(x: Tensor, block_size: Tensor) -> Tensor:
    """``(N, C, H·b, W·b) -> (N, C·b², H, W)``, the inverse of `depth_to_space`."""
    n, c, h, w = x.shape
    b = int(block_size)
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


def pixel_shuffle(x: Tensor, upscale_factor: Tensor) -> Tensor:
    """``(N, C·f², H, W) -> (N, C, H·f, W·f)``, as in PyTorch."""
    return functional.pixel_shuffle(x, int(upscale_factor))


def pixel_unshuffle(x: Tensor, downscale_factor: Tensor) -> Tensor:
    """``(N, C, H·f, W·f) -> (N, C·f², H, W)``, the inverse of `pixel_shuffle`."""
    return functional.pixel_unshuffle(x, int(downscale_factor))


def space_to_batch(x: Tensor, block_shape: Tensor, paddings: Tensor) -> Tensor:
    """``(N, C, H·a, W·b) -> (a·b·N, C, H, W)`` after padding with zeros."""
    a, b = block_shape.tolist()
    (top, bottom), (left, right) = paddings.tolist()
    x = functional.pad(x, (left, right, top, bottom))
    n, c, h, w = x.shape
    return x.reshape(n, c, h // a, a, w // b, b).permute(3, 5, 0, 1, 2, 4).reshape(a * b * n, c, h // a, w // b)


def batch_to_space(x: Tensor, block_shape: Tensor, crops: Tensor) -> Tensor:
    """``(a·b·N, C, H, W) -> (N, C, H·a, W·b)``, then cropped."""
    a, b = block_shape.tolist()
    (top, bottom), (left, right) = crops.tolist()
    n, c, h, w = x.shape
    x = x.reshape(a, b, n // (a * b), c, h, w).permute(2, 3, 4, 0, 5, 1).reshape(n // (a * b), c, h * a, w * b)
    return x[:, :, top : h * a - bottom, left : w * b - right]


def sliding_windows(x: Tensor, axis: Tensor, size: Tensor, stride: Tensor | None = None) -> Tensor:
    """All windows along an axis, as a new axis behind it."""
    along = int(axis) % x.ndim
    return x.unfold(along, int(size), 1 if stride is None else int(stride)).movedim(-1, along + 1)


def crop(x: Tensor, crop_height: Tensor, crop_width: Tensor) -> Tensor:
    """Without so many rows at the top and bottom and columns at the left and right."""
    (top, bottom), (left, right) = crop_height.tolist(), crop_width.tolist()
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def parts(values: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A tuple of one is written as its only part."""
    return (values,) if isinstance(values, Tensor) else tuple(values)
