"""Why LiteRT's plain kernels, which NPUs follow, sometimes differ from the program by a step: they round twice.

An output's integer is an int32 sum of products times a real factor below 1. The program and XNNPACK round that product
once. The plain kernels know the factor as an integer multiplier and a shift of n bits. They round the sum times the
multiplier to a whole number, and that number, shifted by n bits, once more. Where the first rounding lifts a value
exactly halfway between two steps, the second one rounds it up. This happens to one value in 2^(n+1).

Sources: ``MultiplyByQuantizedMultiplier`` in
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/kernels/internal/common.h and
``QuantizeMultiplier`` in ``quantization_util.cc`` beside it; ``SaturatingRoundingDoublingHighMul`` and
``RoundingDivideByPOT`` in https://github.com/google/gemmlowp/blob/master/fixedpoint/fixedpoint.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from torch.nn import functional as F

from targets.tflite import flatbuffer

if TYPE_CHECKING:
    from pipeline.target import Array

SUMS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def once(sums: Array, factor: Array) -> Array:
    """Integer sums times a factor, rounded half to even."""
    rounded: Array = np.rint(sums * factor)
    return rounded.astype(np.int64)


def twice(sums: Array, factor: Array) -> Array:
    """The same as the plain kernels compute it.

    >>> eighth = np.array(1 / 8)  # the multiplier stands for 1/2, and the shift has 2 bits
    >>> sums = np.array([2, 3, 4, 5, -3, -4])
    >>> once(sums, eighth).tolist()
    [0, 0, 0, 1, 0, 0]
    >>> twice(sums, eighth).tolist()  # of 3, 3/2 becomes 2, and 2/4 becomes 1
    [0, 1, 1, 1, 0, -1]
    """
    multiplier, shift = fixed_point(factor)
    left, right = np.maximum(-shift, 0), np.maximum(shift, 0)
    whole = ((sums.astype(np.int64) << left) * multiplier + 2**30) >> 31
    half = (1 << right) >> 1
    nearest: Array = np.sign(whole) * ((np.abs(whole) + half) >> right)  # away from zero
    return nearest


def fixed_point(factor: Array) -> tuple[Array, Array]:
    """Factors as ``multiplier / 2^31 / 2^shift``, the multiplier from 2^30 up; the shift is above 0 below a half."""
    significand, exponent = np.frexp(factor)
    multiplier = np.floor(significand * 2**31 + 0.5).astype(np.int64)
    full = multiplier == 2**31
    return np.where(full, 2**30, multiplier), -(exponent + full).astype(np.int64)


def moved(model: Any) -> float:
    """Share of a model's sums that rounding twice may move by a step: the mean of ``2^-(n+1)``, 0 where n is 0."""
    shares, sizes = [], []
    for operator in model.subgraphs[0].operators:
        if sums_integers(model, operator):
            _, shift = fixed_point(factors(model, operator))
            shares.append(np.mean(np.where(shift > 0, 0.5 ** (shift + 1.0), 0.0)))
            sizes.append(np.prod(model.subgraphs[0].tensors[operator.outputs[0]].shape))
    return float(np.average(shares, weights=sizes)) if shares else 0.0


def note(path: Path) -> tuple[str, ...]:
    """What a reader of the plain kernels' accuracy should know of them; nothing where the file sums no integers."""
    share = moved(flatbuffer.read_model(path.read_bytes()))
    return (f"the plain kernels round sums twice, which moves up to {share:.2%} of them by one step",) if share else ()


def sums_integers(model: Any, operator: Any) -> bool:
    """Whether an operator sums int8 products."""
    output = model.subgraphs[0].tensors[operator.outputs[0]]
    return flatbuffer.operator_name(model, operator) in SUMS and flatbuffer.dtype_name(output) == "INT8"


def factors(model: Any, operator: Any) -> Array:
    """What an operator's sums are multiplied by, per output channel, in float64 as the kernels compute it."""
    x, weight, output = (model.subgraphs[0].tensors[index] for index in (*operator.inputs[:2], operator.outputs[0]))
    return _scales(x) * _scales(weight) / _scales(output)


def exact_sums(model: Any, operator: Any, integers: Array) -> Array:
    """An operator's sums of products and bias, channels last, as int64, before any rounding.

    Args:
        integers: Of its input, ``(1, H, W, C)`` or ``(N, C)``.
    """
    graph = model.subgraphs[0]
    x, weight, bias = (graph.tensors[index] for index in operator.inputs)
    centred = torch.from_numpy(integers.astype(np.float64) - x.quantization.zeroPoint[0])  # float64 holds all sums
    weights, biases = (
        torch.from_numpy(model.buffers[tensor.buffer].data.view(dtype).reshape(tensor.shape).astype(np.float64))
        for tensor, dtype in ((weight, np.int8), (bias, np.int32))
    )
    if flatbuffer.operator_name(model, operator) == "FULLY_CONNECTED":
        return (centred.reshape(-1, weights.shape[1]) @ weights.T + biases).numpy().astype(np.int64)
    depthwise = flatbuffer.operator_name(model, operator) == "DEPTHWISE_CONV_2D"
    kernel = weights.permute((3, 0, 1, 2) if depthwise else (0, 3, 1, 2))
    options = operator.builtinOptions
    stride, dilation = (options.strideH, options.strideW), (options.dilationHFactor, options.dilationWFactor)
    image = centred.permute(0, 3, 1, 2)
    if options.padding == schema.Padding.SAME:
        image = F.pad(image, _same(image.shape[2:], kernel.shape[2:], stride, dilation))
    groups = image.shape[1] if depthwise else 1
    sums = F.conv2d(image, kernel, biases, stride, dilation=dilation, groups=groups)
    return sums.permute(0, 2, 3, 1).numpy().astype(np.int64)


def _same(sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Left, right, top and bottom padding with which the output has ``size / stride`` pixels, rounded up.

    >>> _same((28, 29), (3, 3), (2, 2), (1, 1))
    [1, 1, 0, 1]
    """
    padding: list[int] = []
    for size, taps, step, spread in zip(sizes, kernel, stride, dilation, strict=True):
        whole = max((-(-size // step) - 1) * step + (taps - 1) * spread + 1 - size, 0)
        padding = [whole // 2, whole - whole // 2, *padding]
    return padding


def _scales(tensor: Any) -> Array:
    return np.asarray(tensor.quantization.scale, np.float32).astype(np.float64)
