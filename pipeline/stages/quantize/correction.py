"""Bias correction: rounding a weight shifts its operator's mean output; the bias takes that shift back.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2
(https://arxiv.org/abs/1906.04721).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def corrected_bias(
    operator: Callable[..., Tensor],
    mean_input: Tensor,
    weight: Tensor,
    rounded: Tensor,
    bias: Tensor,
    arguments: tuple[Any, ...] = (),
) -> Tensor:
    """``b + mean(f(E[x], W - Wq))`` in closed form, exact because ``f`` is linear in the input.

    Args:
        operator: The convolution or linear ``f(x, weight, bias, *arguments)``.
        mean_input: ``E[x]`` over the calibration samples, ``(1, …)``: padding is treated exactly.
        weight: The float weight.
        rounded: The same weight after rounding to its int8 grid.
        bias: ``(C,)``.

    >>> f = torch.nn.functional.linear
    >>> w, wq = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.9, 2.0]])
    >>> corrected_bias(f, torch.tensor([[5.0, 1.0]]), w, wq, torch.tensor([1.0]))
    tensor([1.5000])
    """
    shift = operator(mean_input, weight - rounded, None, *arguments)
    channel = shift.ndim - 1 if operator_is_linear(operator) else 1
    return bias + shift.movedim(channel, 0).flatten(1).mean(1)


def operator_is_linear(operator: Callable[..., Tensor]) -> bool:
    """Whether output channels are last, as in a linear layer, and not second, as in a convolution."""
    return operator in (torch.nn.functional.linear, torch.ops.aten.linear.default)
