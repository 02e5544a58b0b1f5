"""Operators as others that the converter knows and converts correctly. Each form computes what it replaces.

What the converter does not know at all is taken apart by torch's own decompositions. `FORMS` holds the operators that
it refuses or gets wrong in some of their settings, and what stands in their place there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table, get_decompositions
from torch.export import ExportedProgram, default_decompositions
from torch.nn import functional as F

from targets.coreml.sdk import is_known

logger = logging.getLogger(__name__)

aten = torch.ops.aten

Form = Callable[..., Any]
"""Computes what an operator computes from the same arguments; ``NotImplemented`` leaves the operator as it is."""

DEPTH = 8
"""How often what is taken apart may itself hold operators that the converter does not know."""


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program in operators that the converter knows, as far as torch can take the others apart."""
    program = program.run_decompositions(dict(FORMS))
    every = default_decompositions()
    for _ in range(DEPTH):
        unknown = {
            node.target
            for node in program.graph.nodes
            if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and not is_known(node)
        }
        ways = {each: every[each] if each in every else decomposition_table.get(each) for each in unknown}
        found = {each: way for each, way in ways.items() if way is not None}
        if not found:
            break
        logger.debug("taken apart: %s", ", ".join(sorted(map(str, found))))
        program = program.run_decompositions({**FORMS, **found})
    return program


def prelu(x: Tensor, slope: Tensor) -> Any:
    """With one slope per channel on ``(N, C, H, W)``: the converter takes several slopes at that rank only."""
    if x.ndim == 4 or x.ndim < 2 or (slope.numel() == 1 and x.ndim <= 5):
        return NotImplemented
    if x.ndim > 4:
        return torch.unflatten(torch.prelu(x.flatten(3), slope), 3, x.shape[3:])
    missing = 4 - x.ndim
    shaped = x[(..., *[None] * missing)]
    return torch.prelu(shaped, slope).squeeze(tuple(range(-missing, 0)))


def instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_variance: Tensor | None,
    use_input_stats: bool,
    momentum: float,  # noqa: ARG001  # for training only
    epsilon: float,
    cudnn_enabled: bool,  # noqa: ARG001  # a torch setting
) -> Any:
    """With running statistics, which the converter overlooks: one factor and one offset per channel."""
    if use_input_stats or running_mean is None or running_variance is None:
        return NotImplemented
    factor = (running_variance + epsilon).rsqrt()
    factor = factor if weight is None else factor * weight
    offset = -running_mean * factor if bias is None else bias - running_mean * factor
    shape = (1, -1, *[1] * (x.ndim - 2))
    return x * factor.reshape(shape) + offset.reshape(shape)


def conv_transpose(operator: Callable[..., Tensor]) -> Form:
    """With output padding: the whole result, of which a slice is taken.

    Where the slice ends behind the result (more output padding than padding), zeros follow the input.
    """

    def form(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Sequence[int] | int = 1,
        padding: Sequence[int] | int = 0,
        output_padding: Sequence[int] | int = 0,
        groups: int = 1,
        dilation: Sequence[int] | int = 1,
    ) -> Any:
        rank = weight.ndim - 2
        strides, before, extra, steps = (_per_axis(each, rank) for each in (stride, padding, output_padding, dilation))
        if not any(extra):
            return NotImplemented
        spatial = x.shape[2:]
        missing = [-(-max(more - pad, 0) // step) for more, pad, step in zip(extra, before, strides, strict=True)]
        if any(missing):
            x = F.pad(x, [width for count in reversed(missing) for width in (0, count)])
        result = operator(x, weight, bias, strides, 0, 0, groups, steps)
        for axis in range(rank):
            span = steps[axis] * (weight.shape[2 + axis] - 1) + 1
            size = (spatial[axis] - 1) * strides[axis] - 2 * before[axis] + span + extra[axis]
            result = result.narrow(2 + axis, before[axis], size)
        return result

    return form


def pad(x: Tensor, widths: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    """With negative widths, which cut: as slices. Circular: as parts of the tensor joined to it."""
    if mode != "circular" and all(not isinstance(width, int) or width >= 0 for width in widths):
        return NotImplemented
    for index, (start, end) in enumerate(zip(widths[0::2], widths[1::2], strict=True)):
        axis = x.ndim - 1 - index
        first, size = max(-start, 0), x.shape[axis]
        x = x.narrow(axis, first, size - first - max(-end, 0))
        if mode == "circular":
            before, after = x.narrow(axis, size - max(start, 0), max(start, 0)), x.narrow(axis, 0, max(end, 0))
            x = torch.cat([before, x, after], axis)
    return x if mode == "circular" else F.pad(x, [max(width, 0) for width in widths], mode, value)


def constant_pad(x: Tensor, widths: Sequence[int], value: float = 0.0) -> Any:
    """See `pad`."""
    return pad(x, widths, "constant", value)


def matmul(one: Tensor, other: Tensor) -> Any:
    """With a vector on either side, as a matrix of one row or column."""
    if one.ndim > 1 and other.ndim > 1:
        return NotImplemented
    product = (one if one.ndim > 1 else one[None]) @ (other if other.ndim > 1 else other[:, None])
    product = product if other.ndim > 1 else product.squeeze(-1)
    return product if one.ndim > 1 else product.squeeze(-2 if other.ndim > 1 else -1)


def rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, epsilon: float | None = None) -> Any:
    """With its epsilon written out: by default, that of the dtype."""
    if epsilon is not None:
        return NotImplemented
    return F.rms_norm(x, list(shape), weight, torch.finfo(x.dtype).eps)


def lerp(start: Tensor, end: Tensor, weight: float | Tensor) -> Tensor:
    """``start + weight * (end - start)``; torch's own decomposition chooses between two sums."""
    return start + weight * (end - start)


def where_number(choice: Tensor, number: float, other: Tensor) -> Tensor:
    """With the number as a tensor of the other operand's dtype."""
    return torch.where(choice, torch.full((), number, dtype=other.dtype), other)


def filled_like(number: float | None) -> Form:
    """With another dtype than the tensor's, which the converter overlooks: the tensor is converted first.

    Args:
        number: What to fill with; None for an operator that is given it.
    """

    def form(x: Tensor, *given: Any, dtype: torch.dtype | None = None, **_: Any) -> Any:
        if dtype in (None, x.dtype):
            return NotImplemented
        return torch.zeros_like(x.to(dtype)) + (given[0] if number is None else number)

    return form


def unfold(x: Tensor, axis: int, size: int, step: int) -> Tensor:
    """Windows along an axis, as one slice per position in the window."""
    last = x.shape[axis] - size
    return torch.stack([aten.slice.Tensor(x, axis, at, at + last + 1, step) for at in range(size)], -1)


def _per_axis(value: Sequence[int] | int, rank: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def cosine_similarity(x: Tensor, y: Tensor, dim: int = 1, eps: float = 1e-8) -> Any:
    """The converter wants every argument, and limits the product of both norms instead of each."""
    norms = (value.square().sum(dim).sqrt().clamp_min(eps) for value in (x, y))
    product = (x * y).sum(dim)
    for norm in norms:
        product = product / norm
    return product


def rfft(x: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Any:
    """The converter wants every argument, and torch leaves out those that have their usual values."""
    if n is not None and norm is not None and dim >= 0:
        return NotImplemented
    return aten.fft_rfft.default(x, x.shape[dim] if n is None else n, dim % x.ndim, norm or "backward")


FORMS: dict[Any, Form] = {
    **get_decompositions([aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input]),
    aten.prelu.default: prelu,
    aten.instance_norm.default: instance_norm,
    aten.conv_transpose1d.default: conv_transpose(F.conv_transpose1d),
    aten.conv_transpose2d.input: conv_transpose(F.conv_transpose2d),
    aten.conv_transpose3d.input: conv_transpose(F.conv_transpose3d),
    aten.pad.default: pad,
    aten.constant_pad_nd.default: constant_pad,
    aten.matmul.default: matmul,
    aten.rms_norm.default: rms_norm,
    aten.cosine_similarity.default: cosine_similarity,
    aten.fft_rfft.default: rfft,
    aten.lerp.Scalar: lerp,
    aten.lerp.Tensor: lerp,
    aten.where.ScalarSelf: where_number,
    aten.unfold.default: unfold,
    aten.zeros_like.default: filled_like(0),
    aten.ones_like.default: filled_like(1),
    aten.full_like.default: filled_like(None),
}
