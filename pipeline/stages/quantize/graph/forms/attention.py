"""Attention as matrix products and a softmax, which have integer kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MASKED = -1e4
"""A score that softmax maps to zero, and float16 can hold; a smaller number in an additive mask means the same."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """``softmax(q s @ k^T) @ v``; the query, the smaller operand, is scaled. Shared heads are left alone.

    A masked score becomes `MASKED`; the offsets of an additive mask are added where they are above it. A query that
    may look at nothing gives zeros where the mask says so by False or minus infinity, and else the mean of the values,
    since the scores are lost in numbers as large as ``finfo.min``: both as torch's does.
    """
    if enable_gqa or dropout_p > 0:
        return NotImplemented
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if is_causal:
        causal = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        return torch.softmax(torch.where(causal, scores, MASKED), -1) @ value
    if attn_mask is None:
        return torch.softmax(scores, -1) @ value
    visible = looking = attn_mask
    if attn_mask.dtype != torch.bool:
        visible, looking = attn_mask > MASKED, attn_mask > -torch.inf
        scores = scores + torch.where(visible, attn_mask, 0.0)
    looking = looking.any(-1, keepdim=True).to(query.dtype)
    return (torch.softmax(torch.where(visible, scores, MASKED), -1) @ value) * looking


def baddbmm(added: Tensor, one: Tensor, other: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``beta * added + alpha * (one @ other)``, as torch computes scores with a mask; NaN times a beta of 0 is 0."""
    product = torch.bmm(one, other)
    product = product if alpha == 1 else product * alpha
    if beta == 0:
        return product
    return product + (added if beta == 1 else added * beta)
