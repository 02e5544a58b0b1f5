"""Arithmetic with numbers, constants and reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.fuzz.blocks.activations import ANY
from tests.fuzz.blocks.kind import Compute, DoesNotFit, kind
from tests.fuzz.spec import Value

WITH_NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "mul": lambda x: x * 0.5,
    "add": lambda x: x + 1.5,
    "sub": lambda x: x - 0.5,
    "rsub": lambda x: 1 - x,
    "div": lambda x: x / 3,
    "neg": lambda x: -x,
    "floor_div": lambda x: torch.div(x, 0.5, rounding_mode="floor"),
    "square": lambda x: x.square(),
    "pow": lambda x: x**2,
    "pow_half": lambda x: (x.abs() + 0.1) ** 0.5,
    "abs": lambda x: x.abs(),
    "exp": lambda x: torch.exp(-x.abs()),
    "log1p": lambda x: x.relu().log1p(),
    "sqrt": lambda x: (x.relu() + 0.01).sqrt(),
    "rsqrt": lambda x: torch.rsqrt(x * x + 0.1),
    "reciprocal": lambda x: 1 / (1 + x.abs()),
    "sin": torch.sin,
    "cos": lambda x: x.cos(),
    "erf": torch.erf,
    "atan": torch.atan,
    "sign": torch.sign,
    "round": torch.round,
    "floor": torch.floor,
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "nan_to_num": torch.nan_to_num,
    "new_ones": lambda x: x + x.new_ones(x.shape[-1]),
    "zeros_like": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "full_like": lambda x: x * torch.full_like(x, 0.5),
    "literal": lambda x: x + torch.tensor(0.25),
    "clone": lambda x: x.clone(),
    "contiguous": lambda x: x.contiguous(),
    "to_float": lambda x: x.float(),
    "sum_of_three": lambda x: x + x.relu() + x.tanh(),
    "standardize": lambda x: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-3),
    "minmax": lambda x: x / (x.flatten(1).abs().amax(1).view(-1, *[1] * (x.ndim - 1)) + 1e-3),
    "add_in_place": lambda x: x.clone().add_(1.0).mul_(0.5),
    "cumsum": lambda x: x.cumsum(-1),
    "diff": lambda x: x.diff(dim=-1, prepend=x[..., :1]),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "normalize_channels": lambda x: F.normalize(x, dim=1),
    "sort": lambda x: x.sort(-1).values,
}


@kind(ANY, name=tuple(WITH_NUMBERS))
def math(_x: Value, name: str) -> nn.Module:
    function = WITH_NUMBERS[name]
    return Compute(lambda _, y: function(y))


@kind("image signal", form=("scale", "add", "affine", "position", "subtract_mean", "scalar", "buffer_left"))
def constants(x: Value, form: str) -> nn.Module:
    """Parameters and buffers: layer scale, position embeddings, normalisation of pixels, a learnt factor."""
    per_channel = (x.channels, *[1] * (len(x.shape) - 1))
    scale, shift = nn.Parameter(torch.ones(per_channel)), nn.Parameter(torch.zeros(per_channel))
    functions: dict[str, Callable[[Any, Tensor], Tensor]] = {
        "scale": lambda self, y: y * self.scale,
        "add": lambda self, y: y + self.shift,
        "affine": lambda self, y: y * self.scale + self.shift,
        "position": lambda self, y: y + self.position,
        "subtract_mean": lambda self, y: (y - self.mean) / self.std,
        "scalar": lambda self, y: y * self.one + self.one,
        "buffer_left": lambda self, y: self.mean - y,
    }
    mean, std = torch.full((1, *per_channel), 0.3), torch.full((1, *per_channel), 0.6)
    position = nn.Parameter(torch.zeros(1, *x.shape))
    one = nn.Parameter(torch.ones(()))
    return Compute(functions[form], scale=scale, shift=shift, position=position, mean=mean, std=std, one=one)


@kind("tokens", form=("position", "scale", "first_token"))
def token_constants(x: Value, form: str) -> nn.Module:
    functions: dict[str, Callable[[Any, Tensor], Tensor]] = {
        "position": lambda self, y: y + self.position[:, : y.shape[1]],
        "scale": lambda self, y: y * self.scale,
        "first_token": lambda self, y: torch.cat((self.first.expand(y.shape[0], -1, -1), y), 1),
    }
    tokens, channels = x.shape
    return Compute(
        functions[form],
        position=nn.Parameter(torch.zeros(1, tokens, channels)),
        scale=nn.Parameter(torch.ones(channels)),
        first=nn.Parameter(torch.zeros(1, 1, channels)),
    )


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(1, keepdim=True),
    "sum": lambda x: x.sum(1, keepdim=True),
    "max": lambda x: x.max(1, keepdim=True).values,
    "amax": lambda x: x.amax(1, keepdim=True),
    "amin": lambda x: x.amin(dim=1, keepdim=True),
    "norm": lambda x: x.norm(dim=1, keepdim=True),
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True),
    "std": lambda x: x.std(1, keepdim=True),
    "var": lambda x: x.var(1, keepdim=True, unbiased=False),
    "prod": lambda x: x.tanh().prod(1, keepdim=True),
}


@kind("image signal", name=tuple(REDUCTIONS), use=("subtract", "multiply", "concatenate", "keep"))
def over_channels(x: Value, name: str, use: str) -> nn.Module:
    """A reduction over the channels, and how it meets the values again (CBAM's spatial attention)."""
    if name in ("std", "var") and x.channels < 2:
        raise DoesNotFit
    reduce = REDUCTIONS[name]
    functions: dict[str, Callable[[Any, Tensor], Tensor]] = {
        "subtract": lambda _, y: y - reduce(y),
        "multiply": lambda _, y: y * reduce(y).sigmoid(),
        "concatenate": lambda _, y: torch.cat((y, reduce(y)), 1),
        "keep": lambda _, y: reduce(y),
    }
    return Compute(functions[use])


ANSWERS: dict[str, Callable[[Tensor], Tensor]] = {
    "argmax": lambda x: x.argmax(1),
    "mean_of_all": lambda x: x.mean(),
    "per_sample_scalar": lambda x: x.flatten(1).mean(1),
    "topk": lambda x: x.flatten(1).topk(1, 1).values,
    "greater": lambda x: x > 0,
    "to_int": lambda x: (x * 4).to(torch.int64),
    "max_and_index": lambda x: x.max(1).indices,
    "half": lambda x: x.half(),
    "transposed": lambda x: x.transpose(1, -1),
}


@kind(ANY, gives="answer", name=tuple(ANSWERS))
def answer(_x: Value, name: str) -> nn.Module:
    """What postprocessing inside a network gives: only an output."""
    function = ANSWERS[name]
    return Compute(lambda _, y: function(y))
