"""The denoising demo's network: it computes the noise at half of the resolution, after FFDNet, and subtracts it.

FFDNet: https://arxiv.org/abs/1710.04026; residual learning: DnCNN, https://arxiv.org/abs/1608.03981.
"""

from __future__ import annotations

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, added to the input. ReLU6 keeps sums of blocks in a range that eight bits can hold."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.relu = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(x + self.layers(x))
        return out


class Denoiser(nn.Module):
    """A convolution to half of the resolution, residual blocks, and a pixel shuffle back."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU6()
        )
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.noise = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, image: Tensor) -> Tensor:
        """The image without its noise, ``(N, 1, H, W)`` in [0, 1], as the input is."""
        out: Tensor = image - self.noise(self.blocks(self.stem(image)))
        return out


def denoiser(channels: int = 32, blocks: int = 3) -> Denoiser:
    """The demo's model, for images ``(N, 1, 64, 64)``."""
    return Denoiser(channels, blocks)
