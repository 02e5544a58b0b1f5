"""Elementwise operators, comparisons, casts and selection."""

from __future__ import annotations

import torch
from torch import Tensor

from targets.coreml.interpreter.program import DATA_TYPES


def real_div(x: Tensor, y: Tensor) -> Tensor:
    """``x / y``; integers are divided and the quotient truncated towards zero."""
    if x.dtype.is_floating_point:
        return x / y
    return torch.div(x, y, rounding_mode="trunc")


def floor_div(x: Tensor, y: Tensor) -> Tensor:
    """``floor(x / y)``."""
    return torch.div(x, y, rounding_mode="floor")


def inverse(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    """``1 / (x + epsilon)``; epsilon is 1e-4 where absent."""
    return 1 / (x + (1e-4 if epsilon is None else epsilon))


def log(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    """``ln(x + epsilon)``; epsilon is 1e-45 where absent."""
    return torch.log(x + (1e-45 if epsilon is None else epsilon))


def rsqrt(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    """``1 / sqrt(x + epsilon)``; epsilon is 1e-12 where absent."""
    return torch.rsqrt(x + (1e-12 if epsilon is None else epsilon))


def clip(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``min(max(x, alpha), beta)``."""
    return torch.minimum(torch.maximum(x, alpha), beta)


def threshold(x: Tensor, alpha: Tensor) -> Tensor:
    """``max(x, alpha)``."""
    return torch.maximum(x, alpha)


def cast(x: Tensor, dtype: str) -> Tensor:
    """``x`` as another type; from float to integer by truncation towards zero. FP16 is held as float32, unrounded."""
    return x.to(DATA_TYPES[_long_name(dtype)].held)


def _long_name(dtype: str) -> str:
    """``fp16`` as ``FLOAT16``, ``int8`` as ``INT8``."""
    return {"fp16": "FLOAT16", "fp32": "FLOAT32", "fp64": "FLOAT64"}.get(dtype, dtype.upper())


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``a`` where the condition holds, else ``b``; all three are broadcast."""
    return torch.where(cond.bool(), a, b)
