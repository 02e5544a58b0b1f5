"""Tiny seeded networks, one per structure that the stages must treat."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from calibration_data.fashion_mnist.network import ResNet
from pipeline.core import TensorSpec

IMAGE = TensorSpec(name="image", shape=(1, 12, 12))


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze-and-excite, project, and add."""

    def __init__(self, channels: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = channels * expansion
        self.expand = nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, 16, 1), nn.ReLU(), nn.Conv2d(16, hidden, 1), nn.Hardsigmoid()
        )
        self.project = nn.Sequential(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        return x + self.project(y * self.squeeze(y))


class Mobile(nn.Module):
    """A stem and two inverted residuals with squeeze-and-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.blocks = nn.Sequential(InvertedResidual(16), InvertedResidual(16))
        self.classifier = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(image)).mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between plain ones (ResNeXt's bottleneck)."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(1, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.grouped = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(32), nn.ReLU()
        )
        self.expand = nn.Sequential(nn.Conv2d(32, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.classifier = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.expand(self.grouped(self.reduce(image))).mean((2, 3)))


class Concat(nn.Module):
    """Two branches joined by concatenation, flattened into a linear layer, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(1, 24, 3, stride=2, padding=1), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU())
        self.merge = nn.Sequential(nn.Conv2d(40, 32, 3, stride=2, padding=1), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(32, 16, 2, stride=2), nn.ReLU())
        self.classifier = nn.Linear(16 * 36, 10)

    def forward(self, image: Tensor) -> Tensor:
        merged = self.merge(torch.cat([self.left(image), self.right(image)], dim=1))
        return self.classifier(self.up(merged).flatten(1))


def residual() -> nn.Module:
    """The demo's network, narrow."""
    return ResNet(widths=(16, 32), blocks=1, classes=10)


CNNS: dict[str, Callable[[], nn.Module]] = {
    "residual": residual,
    "mobile": Mobile,
    "grouped": Grouped,
    "concat": Concat,
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A seeded network in eval mode, its batch-norm statistics away from their initial zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    module = CNNS[name]()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = torch.randn(part.num_features, generator=generator) * 0.1
            part.running_var = torch.rand(part.num_features, generator=generator) + 0.5
            part.weight.data = torch.rand(part.num_features, generator=generator) + 0.5
            part.bias.data = torch.randn(part.num_features, generator=generator) * 0.1
    return module.eval()
