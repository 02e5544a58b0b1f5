"""The keyword demo's network: a depthwise-separable CNN (Zhang et al. 2017, https://arxiv.org/abs/1711.07128)."""

from __future__ import annotations

from torch import Tensor, nn

from calibration_data.keyword.speak import WORDS


def separable(channels: int) -> nn.Sequential:
    """A 3x3 convolution of each channel alone and a 1x1 convolution; batch norm and ReLU after each."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


class KeywordNet(nn.Module):
    """A convolution to half of the resolution, separable convolutions, and a classifier of their mean."""

    def __init__(self, classes: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels, (10, 4), stride=2, padding=(4, 1), bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.blocks = nn.Sequential(*(separable(channels) for _ in range(blocks)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(N, classes)`` for normalised log-mel features ``(N, 1, 40, 50) float32``."""
        logits: Tensor = self.classifier(self.pool(self.blocks(self.stem(features))).flatten(1))
        return logits


def keyword_net(classes: int = len(WORDS), channels: int = 72, blocks: int = 4) -> KeywordNet:
    """The demo's model, for one second of sound."""
    return KeywordNet(classes, channels, blocks)
