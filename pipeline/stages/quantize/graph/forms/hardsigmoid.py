"""Hardsigmoid as ``relu6(x + 3) / 6``: the clamp gives the sum its range, and the factor only changes the scale."""

from __future__ import annotations

import torch
from torch import Tensor


def hardsigmoid(x: Tensor) -> Tensor:
    """``clamp(x + 3, 0, 6) * (1 / 6)``, of any shape."""
    return torch.clamp(x + 3.0, 0.0, 6.0) * (1 / 6)
