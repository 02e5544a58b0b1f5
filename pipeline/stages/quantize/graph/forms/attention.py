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

    A masked score becomes `MASKED`; the offsets of an additive mask are added where they are finite.
    """
    if enable_gqa or dropout_p > 0:
        return NotImplemented
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        offsets, attn_mask = attn_mask, attn_mask > MASKED
        scores = scores + torch.where(attn_mask, offsets, 0.0)
    if attn_mask is not None:
        scores = torch.where(attn_mask, scores, MASKED)
    return torch.softmax(scores, -1) @ value
