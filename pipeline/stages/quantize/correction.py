"""Bias correction: rounding a weight shifts its operator's mean output; the bias takes that shift back.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2
(https://arxiv.org/abs/1906.04721).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def mean_shift(
    operator: Callable[..., Tensor], mean_input: Tensor, lost: Tensor, arguments: tuple[Any, ...] = ()
) -> Tensor:
    """What to add to the bias: the mean of ``f(E[x], W - Wq)`` per output channel ``(C,)``.

    It is exact, padding included, because ``f`` is linear in its input.

    Args:
        operator: The convolution or linear ``f(x, weight, bias, *arguments)``.
        mean_input: ``E[x]`` over the calibration samples, ``(1, …)``.
        lost: ``W - Wq``: what rounding took from the weight.

    >>> linear, lost = torch.ops.aten.linear.default, torch.tensor([[0.25, 0.0]])
    >>> mean_shift(linear, torch.tensor([[4.0, 1.0]]), lost)
    tensor([1.])
    """
    shift = operator(mean_input, lost, None, *arguments)
    channel = -1 if operator == torch.ops.aten.linear.default else 1
    return shift.movedim(channel, 0).flatten(1).mean(1)
