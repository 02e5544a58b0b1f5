"""Normalization of ``(N, C, *D)`` and of arbitrary axes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    """``gamma_c * (x - mean_c) / sqrt(variance_c + epsilon) + beta_c``; epsilon is 1e-5 where absent."""
    return functional.batch_norm(x, mean, variance, gamma, beta, eps=_number(epsilon, 1e-5))


def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: Tensor | None = None
) -> Tensor:
    """Each channel of each sample normalized over its spatial dimensions; epsilon is 1e-5 where absent."""
    axes = torch.arange(2, x.ndim)
    normalized = layer_norm(x, axes, epsilon=epsilon)
    shape = (1, -1, *(1,) * (x.ndim - 2))
    if gamma is not None:
        normalized = normalized * gamma.reshape(shape)
    return normalized if beta is None else normalized + beta.reshape(shape)


def layer_norm(
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    """Normalized over the axes, all where absent; gamma and beta have the shape of those axes; epsilon is 1e-5."""
    chosen = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes.tolist()]
    variance, mean = torch.var_mean(x, tuple(chosen), correction=0, keepdim=True)
    normalized = (x - mean) / torch.sqrt(variance + _number(epsilon, 1e-5))
    shape = tuple(size if axis in chosen else 1 for axis, size in enumerate(x.shape))
    if gamma is not None:
        normalized = normalized * gamma.reshape(shape)
    return normalized if beta is None else normalized + beta.reshape(shape)


def l2_norm(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    """``x / sqrt(sum(x^2) + epsilon)`` over the last three dimensions; epsilon is 1e-6 where absent."""
    return x / torch.sqrt(x.square().sum((-3, -2, -1), keepdim=True) + _number(epsilon, 1e-6))


def local_response_norm(
    x: Tensor, size: Tensor, alpha: Tensor | None = None, beta: Tensor | None = None, k: Tensor | None = None
) -> Tensor:
    """``x / (k + alpha / size * sum of squares of neighbouring channels)^beta``."""
    return functional.local_response_norm(x, int(size), _number(alpha, 1e-4), _number(beta, 0.75), _number(k, 1.0))


def _number(value: Tensor | None, default: float) -> float:
    return default if value is None else float(value)
