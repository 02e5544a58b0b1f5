"""Interpolation, shuffles, and moves between space and channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.fuzz.blocks.kind import Compute, kind
from tests.fuzz.spec import Value


@kind(
    "image",
    mode=("nearest", "bilinear", "bilinear_corners", "bicubic", "nearest-exact", "area", "antialias"),
    by=("2", "0.5", "1.5", "3", "size 13", "size of input", "3x2"),
    form=("function", "module"),
)
def interpolate(x: Value, mode: str, by: str, form: str) -> nn.Module:
    settings: dict[str, Any] = {"mode": mode}
    if mode == "bilinear_corners":
        settings = {"mode": "bilinear", "align_corners": True}
    elif mode == "antialias":
        settings = {"mode": "bilinear", "antialias": True}
    elif mode in ("bilinear", "bicubic"):
        settings["align_corners"] = False
    match by:
        case "size 13":
            settings["size"] = (13, 13)
        case "size of input":
            settings["size"] = (x.shape[1] + 1, x.shape[2])
        case "3x2":
            settings["scale_factor"] = (3.0, 2.0)
        case _:
            settings["scale_factor"] = float(by)
    if form == "module" and "antialias" not in settings:
        return nn.Upsample(**settings)
    return Compute(lambda _, y: F.interpolate(y, **settings))


@kind("image", "image", gives="image", pair="any", mode=("nearest", "bilinear"), join=("add", "cat"))
def upsample_to(_x: Value, y: Value, mode: str, join: str) -> nn.Module:
    """A feature pyramid's step: one map at the size of another, joined with it through a 1x1 convolution."""
    corners = None if mode == "nearest" else False

    def forward(self: Any, small: Tensor, large: Tensor) -> Tensor:
        up = F.interpolate(self.lateral(small), size=large.shape[-2:], mode=mode, align_corners=corners)
        return up + large if join == "add" else torch.cat((up, large), 1)

    return Compute(forward, lateral=nn.Conv2d(_x.channels, y.channels, 1))


@kind("signal", mode=("nearest", "linear"), by=("2", "0.5", "1.5"))
def interpolate1d(_x: Value, mode: str, by: str) -> nn.Module:
    return nn.Upsample(scale_factor=float(by), mode=mode)


@kind("image", factor=(2, 3), form=("module", "function", "with_conv", "by_hand"))
def pixel_shuffle(x: Value, factor: int, form: str) -> nn.Module:
    if form == "with_conv":
        return nn.Sequential(nn.Conv2d(x.channels, 4 * factor**2, 3, padding=1), nn.PixelShuffle(factor))
    if form == "by_hand":

        def by_hand(_: Any, y: Tensor) -> Tensor:
            n, c, h, w = y.shape
            out = c // factor**2
            y = y.view(n, out, factor, factor, h, w).permute(0, 1, 4, 2, 5, 3)
            return y.reshape(n, out, h * factor, w * factor)

        return Compute(by_hand)
    return nn.PixelShuffle(factor) if form == "module" else Compute(lambda _, y: F.pixel_shuffle(y, factor))


@kind("image", form=("module", "by_hand", "focus"))
def pixel_unshuffle(_x: Value, form: str) -> nn.Module:
    """Space to depth; ``focus`` is YOLOv5's, by strided slices."""
    if form == "module":
        return nn.PixelUnshuffle(2)
    if form == "focus":
        return Compute(
            lambda _, y: torch.cat((y[..., ::2, ::2], y[..., 1::2, ::2], y[..., ::2, 1::2], y[..., 1::2, 1::2]), 1)
        )

    def by_hand(_: Any, y: Tensor) -> Tensor:
        n, c, h, w = y.shape
        return y.view(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, h // 2, w // 2)

    return Compute(by_hand)


@kind("image", groups=(2, 4), form=("module", "by_hand", "function"))
def channel_shuffle(_x: Value, groups: int, form: str) -> nn.Module:
    if form == "module":
        return nn.ChannelShuffle(groups)
    if form == "function":
        return Compute(lambda _, y: F.channel_shuffle(y, groups))

    def by_hand(_: Any, y: Tensor) -> Tensor:
        n, c, h, w = y.shape
        return y.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)

    return Compute(by_hand)
