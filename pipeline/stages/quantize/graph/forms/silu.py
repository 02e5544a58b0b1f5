"""SiLU as ``x * sigmoid(x)``: there are integer kernels for both operators, and none for the whole."""

from __future__ import annotations

import torch
from torch import Tensor


def silu(x: Tensor) -> Tensor:
    """``x * sigmoid(x)``, of any shape."""
    return x * torch.sigmoid(x)
