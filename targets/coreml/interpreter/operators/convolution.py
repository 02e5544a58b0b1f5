"""Convolutions and pooling over one to three spatial dimensions: ``(N, C, *D)``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

_CONV = (functional.conv1d, functional.conv2d, functional.conv3d)
_CONV_TRANSPOSE = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
_MAX_POOL = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_AVG_POOL = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Convolution; weight ``(C_out, C_in / groups, *K)``.

    ``same`` pads so that the output has ``ceil(D / stride)`` elements, with an odd element after the input;
    ``same_lower`` puts it before.
    """
    rank = x.ndim - 2
    stride, dilation = _sizes(strides, rank), _sizes(dilations, rank)
    pads = _pads(pad_type, pad, x.shape[2:], weight.shape[2:], stride, dilation)
    padding, x = _symmetric(x, pads, 0.0)
    group = 1 if groups is None else int(groups)
    return _CONV[rank - 1](x, weight, bias, stride, padding, dilation, group)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Tensor | None = None,
    output_shape: Tensor | None = None,
    pad_type: str = "valid",
    strides: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Transposed convolution; weight ``(C_in, C_out / groups, *K)``.

    The full result is cut by ``pad`` (``custom``) or to ``D * stride`` elements (``same``). ``output_shape`` decides
    how much remains after the cut at the front; where the kernel does not reach, the output is the bias.
    """
    rank = x.ndim - 2
    stride, dilation = _sizes(strides, rank), _sizes(dilations, rank)
    group = 1 if groups is None else int(groups)
    full = _CONV_TRANSPOSE[rank - 1](x, weight, None, stride, 0, 0, group, dilation)
    for axis in range(rank):
        available = full.shape[2 + axis]
        wanted = int(output_shape[2 + axis]) if output_shape is not None else None
        if pad_type == "custom" and pad is not None:
            before, after = int(pad[2 * axis]), int(pad[2 * axis + 1])
        elif pad_type == "same":
            wanted = x.shape[2 + axis] * stride[axis] if wanted is None else wanted
            before, after = max(available - wanted, 0) // 2, 0
        else:
            before = after = 0
        size = available - before - after if wanted is None else wanted
        kept = full.narrow(2 + axis, before, min(size, available - before))
        full = functional.pad(kept, (*(0, 0) * (rank - 1 - axis), 0, size - kept.shape[2 + axis]))
    return full if bias is None else full + bias.reshape(1, -1, *(1,) * rank)


def max_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    pad_type: str,
    strides: Tensor | None = None,
    pad: Tensor | None = None,
    ceil_mode: Tensor | None = None,
) -> Tensor:
    """Largest element per window; padding never wins."""
    kernel, stride, pads = _windows(x, kernel_sizes, strides, pad_type, pad)
    padding, x = _symmetric(x, pads, -torch.inf, kernel)
    return _MAX_POOL[len(kernel) - 1](x, kernel, stride, padding, ceil_mode=_flag(ceil_mode))


def avg_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    pad_type: str,
    strides: Tensor | None = None,
    pad: Tensor | None = None,
    exclude_padding_from_average: Tensor | None = None,
    ceil_mode: Tensor | None = None,
) -> Tensor:
    """Mean per window; padding counts as zeros unless it is excluded."""
    kernel, stride, pads = _windows(x, kernel_sizes, strides, pad_type, pad)
    exclude, pool = _flag(exclude_padding_from_average), _AVG_POOL[len(kernel) - 1]
    padding, padded = _symmetric(x, pads, 0.0, kernel)
    if not exclude or padded is x:  # torch itself knows what is padding
        return pool(padded, kernel, stride, padding, _flag(ceil_mode), not exclude)
    inside = functional.pad(torch.ones(1, 1, *x.shape[2:]), _torch_order(pads))
    return pool(padded, kernel, stride) / pool(inside, kernel, stride)


def l2_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    pad_type: str,
    strides: Tensor | None = None,
    pad: Tensor | None = None,
    ceil_mode: Tensor | None = None,
) -> Tensor:
    """Square root of the sum of squares per window."""
    elements: int = math.prod(kernel_sizes.tolist())
    return (avg_pool(x.square(), kernel_sizes, pad_type, strides, pad, None, ceil_mode) * elements).sqrt()


Pads = tuple[tuple[int, int], ...]


def _windows(
    x: Tensor, kernel_sizes: Tensor, strides: Tensor | None, pad_type: str, pad: Tensor | None
) -> tuple[tuple[int, ...], tuple[int, ...], Pads]:
    """Size, stride and padding of a pooling's windows."""
    rank = x.ndim - 2
    kernel, stride = _sizes(kernel_sizes, rank), _sizes(strides, rank)
    return kernel, stride, _pads(pad_type, pad, x.shape[2:], kernel, stride, (1,) * rank)


def _flag(value: Tensor | None) -> bool:
    return value is not None and bool(value)


def _sizes(values: Tensor | None, rank: int) -> tuple[int, ...]:
    return (1,) * rank if values is None else tuple(values.tolist())


def _pads(
    pad_type: str,
    pad: Tensor | None,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Pads:
    """Elements before and after the input, per spatial dimension."""
    if pad_type == "custom" and pad is not None:
        flat = pad.tolist()
        return tuple(zip(flat[::2], flat[1::2], strict=True))
    if pad_type not in ("same", "same_lower"):
        return ((0, 0),) * len(size)
    pads = []
    for d, k, s, r in zip(size, kernel, stride, dilation, strict=True):
        total = max(0, (math.ceil(d / s) - 1) * s + (k - 1) * r + 1 - d)
        smaller, larger = total // 2, total - total // 2
        pads.append((smaller, larger) if pad_type == "same" else (larger, smaller))
    return tuple(pads)


def _symmetric(
    x: Tensor, pads: Pads, value: float, kernel: tuple[int, ...] | None = None
) -> tuple[tuple[int, ...], Tensor]:
    """Padding that torch can do itself and the input, or no padding and the padded input.

    Torch pads alike on both sides only, and when pooling by at most half a window.
    """
    if all(before == after for before, after in pads) and (
        kernel is None or all(2 * before <= k for (before, _), k in zip(pads, kernel, strict=True))
    ):
        return tuple(before for before, _ in pads), x
    return (0,) * len(pads), functional.pad(x, _torch_order(pads), value=value)


def _torch_order(pads: Pads) -> list[int]:
    """Torch lists the last dimension first."""
    return [amount for pair in reversed(pads) for amount in pair]
