"""Quantization of activations, and compressed constants."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from targets.coreml.interpreter.package import unpack_bits


def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: Tensor | None = None
) -> Tensor:
    """``clip(round(input / scale) + zero_point)``, ties to even, as int8 or uint8."""
    dtype = {"int8": torch.int8, "uint8": torch.uint8}[output_dtype]
    limits = torch.iinfo(dtype)
    steps = torch.round(input / _along(scale, input, axis))
    if zero_point is not None:
        steps = steps + _along(zero_point, input, axis).float()
    return steps.clamp_(limits.min, limits.max).to(dtype)


def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
    """``scale * (input - zero_point)``."""
    steps = input.float()
    if zero_point is not None:
        steps = steps - _along(zero_point, input, axis).float()
    return steps * _along(scale, input, axis)


def _along(parameter: Tensor, x: Tensor, axis: Tensor | None) -> Tensor:
    """A scalar as it is; a vector shaped to lie along its axis of ``x``."""
    if parameter.ndim == 0 or axis is None:
        return parameter
    shape = [1] * x.ndim
    shape[int(axis)] = -1
    return parameter.reshape(shape)


def constexpr_affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Tensor) -> Tensor:
    """``scale * (quantized_data - zero_point)``, per tensor or along one axis."""
    return dequantize(quantized_data, scale, zero_point, axis)


def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """``scale * (data - offset)``; each scale covers a block of ``data.shape / scale.shape`` elements."""
    steps = data.float()
    if offset is not None:
        steps = steps - _spread(offset.float(), data)
    return _spread(scale, data) * steps


def _spread(values: Tensor, data: Tensor) -> Tensor:
    """Each value repeated over its block."""
    for axis, (size, blocks) in enumerate(zip(data.shape, values.shape, strict=True)):
        if blocks not in (1, size):
            values = values.repeat_interleave(size // blocks, axis)
    return values


def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    """FP16 constants as FP32."""
    del output_dtype
    return source_val


def constexpr_lut_to_dense(
    indices: Tensor, lut: Tensor, shape: Tensor | None = None, vector_axis: Tensor | None = None
) -> Tensor:
    """Palettized constants: every index is replaced by its entry of a look-up table.

    With ``shape`` (iOS 16): packed indices of ``log2(len(lut))`` bits and one table. Without (iOS 18): ``lut`` is
    ``(*blocks, palettes, vector)``; each block of indices has its own table, and the vector is laid out along
    ``vector_axis``.
    """
    if shape is not None:
        size = tuple(shape.tolist())
        bits = int(math.log2(lut.numel()))
        flat = unpack_bits(indices.numpy().view(np.uint8), bits, math.prod(size))
        return lut[torch.from_numpy(flat).long()].reshape(size)
    *blocks, palettes, vector = lut.shape
    tables = torch.arange(math.prod(blocks)).reshape(blocks)
    table = _spread(tables, indices)
    entries = lut.reshape(-1, vector)[table * palettes + indices.long()]
    if vector == 1:
        return entries.squeeze(-1)
    assert vector_axis is not None  # required by the definition where vectors are longer than 1
    axis = int(vector_axis) % indices.ndim
    return entries.movedim(-1, axis + 1).flatten(axis, axis + 1)


def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Tensor | None = None) -> Tensor:
    """Constants whose zeros are left out; the mask has one bit (iOS 16, with ``shape``) or element per value."""
    if shape is not None:
        size = tuple(shape.tolist())
        mask = torch.from_numpy(unpack_bits(mask.numpy(), 1, math.prod(size))).reshape(size)
    dense = torch.zeros(mask.shape, dtype=nonzero_data.dtype)
    dense[mask != 0] = nonzero_data
    return dense


def constexpr_lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mask and the non-zero values of palettized sparse constants."""
    indices = constexpr_sparse_to_dense(indices_nonzero_data, indices_mask)
    dense = constexpr_lut_to_dense(indices, lut, vector_axis=vector_axis)
    vector = lut.shape[-1]
    mask = indices_mask if vector == 1 else indices_mask.repeat_interleave(vector, int(vector_axis or 0))
    return mask, dense[mask != 0]


def constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mask and the dequantized non-zero values of sparse quantized constants."""
    data = constexpr_sparse_to_dense(nonzero_data, data_mask)
    return data_mask, constexpr_blockwise_shift_scale(data, scale, offset)[data_mask != 0]
