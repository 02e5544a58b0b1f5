"""Pooling, global and local."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.fuzz.blocks.kind import Compute, kind
from tests.fuzz.spec import Value


@kind(
    "image signal",
    kernel=(2, 3),
    stride=(2, 1, None),
    padding=(0, 1),
    ceil_mode=(False, True),
    dilation=(1, 2),
    form=("module", "function"),
)
def max_pool(
    x: Value, kernel: int, stride: int | None, padding: int, ceil_mode: bool, dilation: int, form: str
) -> nn.Module:
    dims = len(x.shape) - 1
    settings = {"padding": padding, "ceil_mode": ceil_mode, "dilation": dilation}
    if form == "module":
        return getattr(nn, f"MaxPool{dims}d")(kernel, stride, **settings)
    function = getattr(F, f"max_pool{dims}d")
    return Compute(lambda _, y: function(y, kernel, stride, **settings))


@kind(
    "image", kernel=(2, 3), stride=(2, 1, None), padding=(0, 1), ceil_mode=(False, True),
    count_include_pad=(True, False), divisor_override=(None, 3),
)  # fmt: skip
def avg_pool2d(
    _x: Value, kernel: int, stride: int | None, padding: int, ceil_mode: bool, count_include_pad: bool,
    divisor_override: int | None,
) -> nn.Module:  # fmt: skip
    return nn.AvgPool2d(kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)


@kind(
    "signal",
    kernel=(2, 3),
    stride=(2, 1, None),
    padding=(0, 1),
    ceil_mode=(False, True),
    count_include_pad=(True, False),
)
def avg_pool1d(
    _x: Value, kernel: int, stride: int | None, padding: int, ceil_mode: bool, count_include_pad: bool
) -> nn.Module:
    return nn.AvgPool1d(kernel, stride, padding, ceil_mode, count_include_pad)


@kind("image signal", which=("avg", "max"), size=(1, 2, 3), form=("module", "function"))
def adaptive_pool(x: Value, which: str, size: int, form: str) -> nn.Module:
    dims = len(x.shape) - 1
    if form == "module":
        return getattr(nn, f"Adaptive{which.title()}Pool{dims}d")(size)
    function = getattr(F, f"adaptive_{which}_pool{dims}d")
    return Compute(lambda _, y: function(y, size))


@kind("volume", gives="volume", which=("Max", "Avg"))
def pool3d(_x: Value, which: str) -> nn.Module:
    return getattr(nn, f"{which}Pool3d")(2)


GLOBAL: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean((2, 3)),
    "mean_keepdim": lambda x: x.mean([2, 3], keepdim=True).flatten(1),
    "pool_flatten": lambda x: torch.flatten(F.adaptive_avg_pool2d(x, 1), 1),
    "pool_squeeze": lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
    "pool_view": lambda x: F.adaptive_avg_pool2d(x, (1, 1)).view(x.size(0), -1),
    "window": lambda x: F.avg_pool2d(x, x.shape[2:]).flatten(1),
    "max": lambda x: x.amax((2, 3)),
    "max_twice": lambda x: x.max(3)[0].max(2)[0],
    "max_pool": lambda x: F.adaptive_max_pool2d(x, 1).flatten(1),
    "sum": lambda x: x.sum((2, 3)) * 0.05,
    "mean_twice": lambda x: x.mean(3).mean(2),
    "flat_mean": lambda x: x.flatten(2).mean(-1),
    "mean_and_max": lambda x: torch.cat((x.mean((2, 3)), x.amax((2, 3))), 1),
    "generalized_mean": lambda x: (x.clamp(min=1e-3) ** 3).mean((2, 3)) ** (1 / 3),
    "std": lambda x: x.flatten(2).std(-1),
    "first_position": lambda x: x[:, :, 0, 0],
}


@kind("image", gives="vector", form=tuple(GLOBAL))
def global_pool(_x: Value, form: str) -> nn.Module:
    function = GLOBAL[form]
    return Compute(lambda _, y: function(y))


TOKEN_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(1),
    "first": lambda x: x[:, 0],
    "last": lambda x: x[:, -1],
    "max": lambda x: x.max(dim=1).values,
    "sum": lambda x: x.sum(1),
    "select": lambda x: x.select(1, 1),
    "flatten": lambda x: x.flatten(1),
    "unbind": lambda x: x.unbind(1)[0],
    "weighted": lambda x: (x * x.mean(-1, keepdim=True).softmax(1)).sum(1),
}


@kind("tokens", gives="vector", form=tuple(TOKEN_POOLS))
def pool_tokens(_x: Value, form: str) -> nn.Module:
    function = TOKEN_POOLS[form]
    return Compute(lambda _, y: function(y))


@kind("tokens", "mask", gives="vector", pair="any", form=("masked_mean", "masked_sum", "masked_max"))
def masked_pool(_x: Value, _m: Value, form: str) -> nn.Module:
    """How sentence embeddings end."""

    def forward(_: Any, y: Tensor, mask: Tensor) -> Tensor:
        if form == "masked_max":
            return y.masked_fill(~mask.unsqueeze(-1), -1e9).max(1).values
        weight = mask.unsqueeze(-1).float()
        total = (y * weight).sum(1)
        return total / weight.sum(1).clamp(min=1e-9) if form == "masked_mean" else total

    return Compute(forward)


@kind("signal", gives="vector", form=("mean", "last", "max", "flatten", "pool"))
def pool_signal(_x: Value, form: str) -> nn.Module:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "mean": lambda x: x.mean(2),
        "last": lambda x: x[..., -1],
        "max": lambda x: x.amax(-1),
        "flatten": lambda x: x.flatten(1),
        "pool": lambda x: F.adaptive_avg_pool1d(x, 1).squeeze(-1),
    }
    function = functions[form]
    return Compute(lambda _, y: function(y))
