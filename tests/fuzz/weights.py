"""Weights like trained ones: a few directions dominate, channels differ in size, tails are heavy, norms are settled."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import is_parametrized

FEW_DIRECTIONS = 3


def train_like(module: nn.Module, seed: int) -> None:
    """Fill a module's parameters."""
    rng = np.random.default_rng(seed)
    norms = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    with torch.no_grad():
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                if isinstance(part, norms) or parameter.numel() == parameter.shape[:1].numel():
                    size_like = name in ("weight", "scale", "gain", "original0", "weight_g")
                    values = _sizes(rng, parameter) if size_like else _shifts(rng, parameter)
                    if isinstance(part, nn.PReLU):
                        values = torch.tensor(rng.uniform(0.05, 0.4, parameter.shape), dtype=parameter.dtype)
                else:
                    values = _matrix(rng, parameter)
                parameter.copy_(values)
            if isinstance(part, nn.Embedding) and part.padding_idx is not None:
                part.weight[part.padding_idx] = 0


def _sizes(rng: np.random.Generator, like: Tensor) -> Tensor:
    return torch.tensor(np.exp(rng.normal(0, 0.4, like.shape)), dtype=like.dtype)


def _shifts(rng: np.random.Generator, like: Tensor) -> Tensor:
    return torch.tensor(0.2 * rng.standard_t(5, like.shape), dtype=like.dtype)


def _matrix(rng: np.random.Generator, like: Tensor) -> Tensor:
    """``(out, …)`` with unit gain: low rank and heavy-tailed noise in equal parts, rows of unlike size."""
    rows, columns = like.shape[0], like[0].numel()
    low = rng.normal(size=(rows, FEW_DIRECTIONS)) @ rng.normal(size=(FEW_DIRECTIONS, columns)) / FEW_DIRECTIONS**0.5
    values = 0.7 * low + 0.7 * rng.standard_t(4, (rows, columns)) / 2**0.5
    values *= np.exp(rng.normal(0, 0.4, (rows, 1))) / columns**0.5
    return torch.tensor(values, dtype=like.dtype).view(like.shape)


def settle(block: nn.Module, values: list[Tensor]) -> Tensor:
    """Give norms the statistics of these samples, and the result a size near one; returns it."""
    norms = [part for part in block.modules() if isinstance(part, _NormBase) and part.track_running_stats]
    with torch.no_grad():
        if norms:
            for norm in norms:
                norm.train()
                norm.momentum = 1.0
            block(*values)
            for norm in norms:
                norm.eval()
                norm.momentum = 0.1
        result = block(*values)
        if result.is_floating_point() and result.numel() > 0:
            size = float(result.square().mean().sqrt())
            last = _last_weight(block)
            if last is not None and not 0.3 < size < 3 and size > 1e-9:
                last.mul_(min(max(1 / size, 0.05), 20.0))
                result = block(*values)
    return result


def _last_weight(block: nn.Module) -> Tensor | None:
    """What scales a block's result: the weight of its last layer."""
    layers = [part for part in block.modules() if isinstance(part, nn.Linear | nn.modules.conv._ConvNd)]
    layers = [layer for layer in layers if not is_parametrized(layer) and not hasattr(layer, "weight_g")]
    return layers[-1].weight if layers else None
