"""Matrix products and attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x · weightᵀ + bias``; weight ``(D_out, D_in)``."""
    return functional.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor, transpose_x: Tensor | None = None, transpose_y: Tensor | None = None) -> Tensor:
    """Batched matrix product with broadcasting; a transposition has no effect on vectors."""
    if transpose_x is not None and bool(transpose_x) and x.ndim > 1:
        x = x.transpose(-1, -2)
    if transpose_y is not None and bool(transpose_y) and y.ndim > 1:
        y = y.transpose(-1, -2)
    return torch.matmul(x, y)


def einsum(values: tuple[Tensor, Tensor], equation: str) -> Tensor:
    """``nchw,nwhu->nchu`` or ``chw,whr->chr``, in any letters; dimensions of size 1 are broadcast."""
    return torch.einsum(equation, *values)


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """``softmax(query · keyᵀ / sqrt(E) + mask) · value``; a boolean mask keeps where it is true."""
    return functional.scaled_dot_product_attention(query, key, value, attn_mask)
