"""Normalisation layers, also in odd places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.fuzz.blocks.kind import Compute, DoesNotFit, kind
from tests.fuzz.spec import Value


@kind(
    "image signal vector volume",
    affine=(True, False),
    act=("none", "relu", "relu6"),
    form=("module", "functional", "by_hand"),
)
def batch_norm(x: Value, affine: bool, act: str, form: str) -> nn.Module:
    dims = {1: 1, 2: 1, 3: 2, 4: 3}[len(x.shape)]
    norm = getattr(nn, f"BatchNorm{dims}d")(x.channels, affine=affine)
    after = {"none": nn.Identity(), "relu": nn.ReLU(), "relu6": nn.ReLU6()}[act]
    shape = (1, -1, *[1] * (len(x.shape) - 1))

    def functional(self: Any, y: Tensor) -> Tensor:
        n = self.norm
        if n.training:
            return self.act(n(y))
        return self.act(F.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias, False, 0.0, n.eps))

    def by_hand(self: Any, y: Tensor) -> Tensor:
        """Frozen batch norm, as detectors carry it."""
        n = self.norm
        if n.training:
            return self.act(n(y))
        scale = (n.running_var + n.eps).rsqrt() * (1.0 if n.weight is None else n.weight)
        shift = (0.0 if n.bias is None else n.bias) - n.running_mean * scale
        return self.act(y * scale.view(shape) + shift.view(shape))

    if form == "module":
        return nn.Sequential(norm, after)
    return Compute(functional if form == "functional" else by_hand, norm=norm, act=after)


@kind("image", groups=("two", "one", "all"), affine=(True, False))
def group_norm(x: Value, groups: str, affine: bool) -> nn.Module:
    count = {"one": 1, "two": 2, "all": x.channels}[groups]
    if x.channels % count:
        raise DoesNotFit
    return nn.GroupNorm(count, x.channels, affine=affine)


@kind("image signal", affine=(True, False), running=(False, True))
def instance_norm(x: Value, affine: bool, running: bool) -> nn.Module:
    if min(x.shape[1:]) < 2:
        raise DoesNotFit
    norm = nn.InstanceNorm2d if x.layout == "image" else nn.InstanceNorm1d
    return norm(x.channels, affine=affine, track_running_stats=running)


@kind("image", size=(3, 2))
def local_response_norm(_x: Value, size: int) -> nn.Module:
    return nn.LocalResponseNorm(size)


@kind("tokens vector channels_last", form=("layer", "rms", "no_bias", "no_affine", "by_hand"))
def layer_norm(x: Value, form: str) -> nn.Module:
    if x.channels < 2:
        raise DoesNotFit
    if form == "rms":
        return nn.RMSNorm(x.channels, eps=1e-5)
    if form == "by_hand":

        def by_hand(self: Any, y: Tensor) -> Tensor:
            variance = y.pow(2).mean(-1, keepdim=True)
            return self.scale * (y * torch.rsqrt(variance + 1e-5))

        return Compute(by_hand, scale=nn.Parameter(torch.ones(x.channels)))
    return nn.LayerNorm(x.channels, bias=form != "no_bias", elementwise_affine=form != "no_affine")


@kind("image", form=("channels_first", "whole", "permuted"))
def layer_norm_2d(x: Value, form: str) -> nn.Module:
    """Layer norms of images: over the channels as ConvNeXt writes it, or over everything."""
    if form == "whole":
        return nn.LayerNorm(list(x.shape))
    if x.channels < 2:
        raise DoesNotFit
    if form == "permuted":
        return Compute(
            lambda self, y: self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=nn.LayerNorm(x.channels)
        )

    def channels_first(self: Any, y: Tensor) -> Tensor:
        mean = y.mean(1, keepdim=True)
        variance = (y - mean).pow(2).mean(1, keepdim=True)
        return self.scale[:, None, None] * ((y - mean) / torch.sqrt(variance + 1e-6)) + self.shift[:, None, None]

    scale, shift = nn.Parameter(torch.ones(x.channels)), nn.Parameter(torch.zeros(x.channels))
    return Compute(channels_first, scale=scale, shift=shift)
