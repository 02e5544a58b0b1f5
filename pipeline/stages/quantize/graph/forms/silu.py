"""SiLU as ``x * sigmoid(x)``: both operators have integer kernels; SiLU has none."""

from __future__ import annotations

import torch
from torch import Tensor


def silu(x: Tensor) -> Tensor:
    """``x * sigmoid(x)``, of any shape."""
    return x * torch.sigmoid(x)
