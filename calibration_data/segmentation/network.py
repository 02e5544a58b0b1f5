"""The segmentation demo's network: a small U-Net (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from calibration_data.scenes.compose import CLASSES


def convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution that keeps the size, or halves it; batch norm; ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()
    )


class UNet(nn.Module):
    """An encoder that halves the image once per width, and a decoder that doubles it again beside what it skipped."""

    def __init__(self, classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Sequential(convolution(before, width, stride=2), convolution(width, width))
            for before, width in zip([1, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(convolution(coarse + fine, fine) for fine, coarse in pairwise(widths))
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.classifier = nn.Conv2d(widths[0], classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``(N, classes, H, W)`` for normalised images ``(N, 1, H, W) float32``; class 0 is the ground."""
        skipped = []
        x = image
        for down in self.down:
            x = down(x)
            skipped.append(x)
        x = skipped.pop()
        for up in reversed(self.up):
            x = up(torch.cat([self.upsample(x), skipped.pop()], 1))
        logits: Tensor = self.upsample(self.classifier(x))
        return logits


def unet(classes: int = len(CLASSES) + 1, widths: Sequence[int] = (16, 24, 36, 48)) -> UNet:
    """The demo's model, for images ``(N, 1, 96, 96)``."""
    return UNet(classes, widths)
