"""Activation functions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


def clamped_relu(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``min(beta, x)`` where ``x >= 0``, else ``min(beta, alpha * x)``."""
    return torch.minimum(torch.where(x >= 0, x, alpha * x), beta)


def elu(x: Tensor, alpha: Tensor) -> Tensor:
    """``x`` where it is positive, else ``alpha * (e^x - 1)``."""
    return torch.where(x > 0, x, alpha * torch.expm1(x))


def gelu(x: Tensor, mode: Literal["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"] | str = "EXACT") -> Tensor:
    """Gaussian error linear unit: exact, or approximated by tanh or by ``x * sigmoid(1.702 x)``."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return functional.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def leaky_relu(x: Tensor, alpha: Tensor) -> Tensor:
    """``x`` where ``x >= 0``, else ``alpha * x``."""
    return torch.where(x >= 0, x, alpha * x)


def linear_activation(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``alpha * x + beta``."""
    return alpha * x + beta


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """``x`` where it is positive, else ``alpha_c * x`` with one alpha per channel of ``(N, C, …)``."""
    return torch.where(x > 0, x, _per_channel(alpha, x) * x)


def relu6(x: Tensor) -> Tensor:
    """``min(max(x, 0), 6)``."""
    return x.clamp(0, 6)


def scaled_tanh(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``alpha * tanh(beta * x)``."""
    return alpha * torch.tanh(beta * x)


def sigmoid_hard(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``min(max(alpha * x + beta, 0), 1)``."""
    return (alpha * x + beta).clamp(0, 1)


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``alpha_c * ln(1 + e^(beta_c * x))`` with one alpha and beta per channel of ``(N, C, …)``."""
    scaled = _per_channel(beta, x) * x
    return _per_channel(alpha, x) * torch.logaddexp(scaled, torch.zeros(()))


def softplus(x: Tensor) -> Tensor:
    """``ln(1 + e^x)``."""
    return torch.logaddexp(x, torch.zeros(()))


def softmax(x: Tensor, axis: Tensor | None = None) -> Tensor:
    """``e^x / sum(e^x)`` along one axis, the last where none is given."""
    return torch.softmax(x, -1 if axis is None else int(axis))


def thresholded_relu(x: Tensor, alpha: Tensor) -> Tensor:
    """``x`` where ``x >= alpha``, else 0."""
    return torch.where(x >= alpha, x, torch.zeros(()))


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(1, -1, *(1,) * (x.ndim - 2))
