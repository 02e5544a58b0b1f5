"""The detection demo's network: an anchor-free single-shot detector with a feature pyramid.

After YOLOX (https://arxiv.org/abs/2107.08430) and the feature pyramid of Lin et al. (https://arxiv.org/abs/1612.03144),
at three scales: a place of a scale's grid answers for the garment around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from calibration_data.scenes.compose import CLASSES, SIZE

STRIDES = (4, 8, 16)
SIDES = (18.0, 34.0, 60.0)
"""Side in pixels of the box that a scale predicts where its convolution answers zero."""
LIMITS = (26.0, 44.0)
"""The longer side of a box up to which the first scale, and the second, answers for it."""


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, or halves it; batch norm; SiLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.SiLU(),
    )


class Bottleneck(nn.Module):
    """A 1x1 convolution to half of the channels and a 3x3 one back, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(convolution(channels, channels // 2, 1), convolution(channels // 2, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class Merge(nn.Module):
    """A coarse map, upsampled, beside a fine one: ``(N, C, H/2, W/2)``, ``(N, F, H, W) -> (N, F, H, W)``."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.layers = nn.Sequential(convolution(coarse + fine, fine, 1), Bottleneck(fine))

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat([self.upsample(coarse), fine], 1))
        return out


class Head(nn.Module):
    """Offsets of boxes, and a logit per class, at each place: ``(N, C, H, W) -> (N, 4, H W)``, ``(N, K, H W)``."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.trunk = convolution(channels, channels, 3)
        self.boxes, self.scores = nn.Conv2d(channels, 4, 1), nn.Conv2d(channels, classes, 1)
        assert self.scores.bias is not None
        nn.init.constant_(self.scores.bias, -4.0)  # almost all places hold nothing

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)
        return self.boxes(features).flatten(2), self.scores(features).flatten(2)


class Decode(nn.Module):
    """From offsets, in sides of an anchor's box from its centre, to pixels: ``(N, 4, anchors)``."""

    middle: Tensor
    side: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        centres, sides = grid(size)
        self.register_buffer("middle", torch.cat([centres, sides]), persistent=False)
        self.register_buffer("side", torch.cat([sides, sides]), persistent=False)

    def forward(self, offsets: Tensor) -> Tensor:
        return offsets * self.side + self.middle


class Detector(nn.Module):
    """A backbone of three scales, a pyramid from the coarsest to the finest, and a head for each.

    Args:
        widths: Channels of the stem, then of each scale.
    """

    def __init__(self, classes: int, widths: Sequence[int], size: int) -> None:
        super().__init__()
        stem, *scales = widths
        self.stem = convolution(1, stem, 3, stride=2)
        self.scales = nn.ModuleList(
            nn.Sequential(convolution(before, width, 3, stride=2), Bottleneck(width))
            for before, width in zip(widths, scales, strict=False)
        )
        self.merges = nn.ModuleList(Merge(coarse, fine) for fine, coarse in pairwise(scales))
        self.heads = nn.ModuleList(Head(width, classes) for width in scales)
        self.decode = Decode(size)

    def forward(self, image: Tensor) -> Tensor:
        """Centre, width and height in pixels, then a logit per class: ``(N, 4 + classes, anchors)``."""
        maps = [self.stem(image)]
        for scale in self.scales:
            maps.append(scale(maps[-1]))
        merged = [maps.pop()]
        for merge in reversed(self.merges):
            merged.insert(0, merge(merged[0], maps.pop()))
        offsets, scores = zip(*(head(features) for head, features in zip(self.heads, merged, strict=True)), strict=True)
        return torch.cat([self.decode(torch.cat(offsets, 2)), torch.cat(scores, 2)], 1)


def grid(size: int) -> tuple[Tensor, Tensor]:
    """Of each anchor, the finest scale's first: its centre ``(2, anchors)``, and its scale's side twice, in pixels.

    >>> centres, sides = grid(16)
    >>> centres.shape, centres[:, 0], sides[:, -1]
    (torch.Size([2, 21]), tensor([2., 2.]), tensor([60., 60.]))
    """
    centres, sides = [], []
    for stride, side in zip(STRIDES, SIDES, strict=True):
        places = (torch.arange(size // stride) + 0.5) * stride
        y, x = torch.meshgrid(places, places, indexing="ij")
        centres.append(torch.stack([x.flatten(), y.flatten()]))
        sides.append(torch.full((2, x.numel()), side))
    return torch.cat(centres, 1), torch.cat(sides, 1)


def detector(classes: int = len(CLASSES), widths: Sequence[int] = (16, 24, 40, 52), size: int = SIZE) -> Detector:
    """The demo's model, for images ``(N, 1, 96, 96)``."""
    return Detector(classes, widths, size)
