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


class Attention(nn.Module):
    """Multi-head self-attention with separate projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.all_head_size = heads, width
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            layer(x).view(batch, tokens, self.num_heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.output(mixed.transpose(1, 2).reshape(batch, tokens, self.all_head_size))


class Transformer(nn.Module):
    """Patches, one pre-norm encoder block and a classifier over the mean token."""

    def __init__(self, width: int = 32, heads: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.fc1, self.fc2 = nn.Linear(width, 64), nn.Linear(64, width)
        self.classifier = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = x + self.attention(self.norm1(x))
        x = x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
        return self.classifier(x.mean(1))


def residual() -> nn.Module:
    """The demo's network, narrow."""
    return ResNet(widths=(16, 32), blocks=1, classes=10)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": residual,
    "mobile": Mobile,
    "grouped": Grouped,
    "concat": Concat,
    "transformer": Transformer,
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A seeded network in eval mode, its batch-norm statistics away from their initial zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    module = NETWORKS[name]()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = torch.randn(part.num_features, generator=generator) * 0.1
            part.running_var = torch.rand(part.num_features, generator=generator) + 0.5
            part.weight.data = torch.rand(part.num_features, generator=generator) + 0.5
            part.bias.data = torch.randn(part.num_features, generator=generator) * 0.1
    return module.eval()
