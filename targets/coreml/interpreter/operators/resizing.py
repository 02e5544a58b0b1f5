"""Resizing and resampling of images ``(…, H, W)``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from targets.coreml.interpreter.operators.creation import bounded
from targets.coreml.interpreter.operators.layout import reflect


def grid(size: int, out: int, sampling_mode: str) -> Tensor:
    """Where the ``out`` samples of an axis of ``size`` elements lie, ``(out,) float32`` in ``[0, size - 1]``.

    The formulas: https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html
    (``iOS15.image_resizing.resize_bilinear``).

    >>> grid(2, 5, "UNALIGN_CORNERS")
    tensor([0.0000, 0.1000, 0.5000, 0.9000, 1.0000])
    >>> grid(2, 5, "DEFAULT")
    tensor([0.0000, 0.4000, 0.8000, 1.0000, 1.0000])
    """
    steps = torch.arange(out, dtype=torch.float64)
    if sampling_mode == "UNALIGN_CORNERS":
        points = (steps + 0.5) * size / out - 0.5
    elif sampling_mode == "DEFAULT":
        points = steps * size / out
    elif sampling_mode == "OFFSET_CORNERS":
        points = (steps + 0.5) * max(1, size - 1) / out
    elif out == 1:
        points = steps + ((size - 1) / 2 if sampling_mode == "ALIGN_CORNERS" else 0)
    else:
        points = steps * (size - 1) / (out - 1)
    return points.clamp(0, size - 1).float()


def _linear(x: Tensor, axis: int, points: Tensor) -> Tensor:
    """Linear interpolation between neighbours along one axis."""
    below = points.floor()
    low, high = below.long(), points.ceil().long()
    shape = [1] * x.ndim
    shape[axis] = -1
    share = (points - below).reshape(shape)
    return x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share


def _nearest(x: Tensor, axis: int, points: Tensor, sampling_mode: str) -> Tensor:
    """The element below (``DEFAULT``) or the nearest one, the later of two equally near."""
    chosen = points.floor() if sampling_mode == "DEFAULT" else (points + 0.5).floor()
    return x.index_select(axis, chosen.long().clamp(max=x.shape[axis] - 1))


def _resized(x: Tensor, sizes: dict[int, int], sampling_mode: str, *, linear: bool) -> Tensor:
    bounded(sizes.get(axis, size) for axis, size in enumerate(x.shape))
    for axis, out in sizes.items():
        points = grid(x.shape[axis], out, sampling_mode)
        x = _linear(x, axis, points) if linear else _nearest(x, axis, points, sampling_mode)
    return x


def resize_bilinear(
    x: Tensor,
    target_size_height: Tensor | None = None,
    target_size_width: Tensor | None = None,
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """To a given size, 1 where absent, by linear interpolation."""
    sizes = {x.ndim - 2: _integer(target_size_height), x.ndim - 1: _integer(target_size_width)}
    return _resized(x, sizes, sampling_mode, linear=True)


def resize_nearest_neighbor(x: Tensor, target_size_height: Tensor, target_size_width: Tensor) -> Tensor:
    """To a given size by repeating or leaving out elements."""
    sizes = {x.ndim - 2: int(target_size_height), x.ndim - 1: int(target_size_width)}
    return _resized(x, sizes, "DEFAULT", linear=False)


def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: Tensor | None = None, scale_factor_width: Tensor | None = None
) -> Tensor:
    """By given factors, 1 where absent, by repeating elements."""
    return _resized(x, _scaled(x, scale_factor_height, scale_factor_width), "DEFAULT", linear=False)


def upsample_bilinear(
    x: Tensor,
    scale_factor_height: Tensor | None = None,
    scale_factor_width: Tensor | None = None,
    align_corners: Tensor | None = None,
    half_pixel_centers: Tensor | None = None,
) -> Tensor:
    """By given factors, 1 where absent, by linear interpolation; the spacing comes from the whole sizes."""
    aligned = align_corners is None or bool(align_corners)
    half_pixel = not aligned if half_pixel_centers is None else bool(half_pixel_centers)
    mode = "STRICT_ALIGN_CORNERS" if aligned else "UNALIGN_CORNERS" if half_pixel else "DEFAULT"
    return _resized(x, _scaled(x, scale_factor_height, scale_factor_width), mode, linear=True)


def resize(
    x: Tensor,
    shape: Tensor,
    resized_dims: Tensor,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """The last ``resized_dims`` dimensions to the last sizes of ``shape``; a 0 keeps a size."""
    count = int(resized_dims)
    wanted = shape.tolist()[len(shape) - count :]
    first = x.ndim - count
    sizes = {first + index: size or x.shape[first + index] for index, size in enumerate(wanted)}
    return _resized(x, sizes, sampling_mode, linear=interpolation_mode == "LINEAR")


def _scaled(x: Tensor, height: Tensor | None, width: Tensor | None) -> dict[int, int]:
    factors = (1.0 if height is None else height.item(), 1.0 if width is None else width.item())
    return {
        axis: math.floor(x.shape[axis] * factor) for axis, factor in zip((x.ndim - 2, x.ndim - 1), factors, strict=True)
    }


def _integer(value: Tensor | None) -> int:
    return 1 if value is None else int(value)


def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: Tensor,
    coordinates_mode: str,
    align_corners: Tensor,
) -> Tensor:
    """``x`` ``(N, C, H, W)`` sampled at ``coordinates`` ``(N, H', W', 2)``, given as (column, row)."""
    columns, rows = (
        _pixels(coordinates[..., index].float(), size, coordinates_mode, bool(align_corners))
        for index, size in ((0, x.shape[3]), (1, x.shape[2]))
    )
    rows, columns = _padded(rows, x.shape[2], padding_mode), _padded(columns, x.shape[3], padding_mode)
    if sampling_mode == "nearest":
        return _pick(x, rows.round(), columns.round(), padding_value)
    top, left = rows.floor(), columns.floor()
    down, right = (rows - top).unsqueeze(1), (columns - left).unsqueeze(1)
    upper = _pick(x, top, left, padding_value) * (1 - right) + _pick(x, top, left + 1, padding_value) * right
    lower = _pick(x, top + 1, left, padding_value) * (1 - right) + _pick(x, top + 1, left + 1, padding_value) * right
    return upper * (1 - down) + lower * down


def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: Tensor,
    output_width: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: Tensor,
    coordinates_mode: str,
    align_corners: Tensor,
) -> Tensor:
    """``x`` sampled at ``(a0 x + a1 y + a2, b0 x + b1 y + b2)``, where x and y run from -1 to 1 over the output."""
    height, width = bounded((int(output_height), int(output_width)))
    y, x_axis = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    points = torch.stack([x_axis, y, torch.ones_like(y)], -1)
    matrices = transform_matrix.reshape(-1, 2, 3).expand(x.shape[0], 2, 3)
    coordinates = torch.einsum("hwk,njk->nhwj", points, matrices)
    return resample(x, coordinates, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners)


def _pixels(points: Tensor, size: int, mode: str, align_corners: bool) -> Tensor:
    """Coordinates as positions between pixel centres 0 and ``size - 1``."""
    if mode == "unnormalized":
        return points
    share = (points + 1) / 2 if mode == "normalized_minus_one_to_one" else points
    return share * (size - 1) if align_corners else share * size - 0.5


def _padded(points: Tensor, size: int, mode: str) -> Tensor:
    """Positions outside the image brought back into it, as the padding mode says."""
    if mode == "border":
        return points.clamp(0, size - 1)
    if mode == "reflection":
        return reflect(points, 0, size - 1)
    if mode == "symmetric":
        return reflect(points, -0.5, size - 0.5).clamp(0, size - 1)
    return points


def _pick(x: Tensor, rows: Tensor, columns: Tensor, outside: Tensor) -> Tensor:
    """Pixels ``(N, C, H', W')`` at whole positions ``(N, H', W')``; a constant where they lie outside."""
    n, c, height, width = x.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    flat = rows.clamp(0, height - 1).long() * width + columns.clamp(0, width - 1).long()
    picked = torch.gather(x.reshape(n, c, -1), 2, flat.reshape(n, 1, -1).expand(-1, c, -1))
    return torch.where(inside.unsqueeze(1), picked.reshape(n, c, *rows.shape[1:]), outside)
