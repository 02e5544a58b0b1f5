"""Seventeen small seeded networks, one of every common architecture, on which quantization and the targets are tested.

Each is built in milliseconds. Batch-norm statistics are set from the samples first, so that activations are spread as
in a trained network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from calibration_data.fashion_mnist.harder.network import InvertedResidual, conv_bn
from calibration_data.fashion_mnist.network import ResNet
from pipeline.core import Model, TensorSpec
from pipeline.data.open import from_dataset
from pipeline.data.samples import SampleSet

VOCABULARY = 64


def mobile(act: Callable[[], nn.Module], gate: nn.Module | None) -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 16, 3, 2, act=act()),
        InvertedResidual(16, 16, 1, act, gate),
        InvertedResidual(16, 24, 2, act, gate),
        InvertedResidual(24, 24, 1, act, gate),
        conv_bn(24, 64, 1, act=act()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(64, 10),
    )


class DenseNet(nn.Module):
    """Batch norm and ReLU before each convolution, whose output is concatenated to its input."""

    def __init__(self, growth: int = 8, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        stages, channels = [], 16
        for _ in range(2):
            dense = [self._layer(channels + index * growth, growth) for index in range(layers)]
            channels += layers * growth
            shrink = nn.Conv2d(channels, channels // 2, 1)
            transition = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), shrink, nn.AvgPool2d(2))
            stages.append(nn.ModuleDict({"dense": nn.ModuleList(dense), "transition": transition}))
            channels //= 2
        self.stages = nn.ModuleList(stages)
        self.classifier = nn.Linear(channels, 10)

    @staticmethod
    def _layer(inputs: int, growth: int) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, growth, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            for layer in stage["dense"]:
                x = torch.cat([x, layer(x)], 1)
            x = stage["transition"](x)
        return self.classifier(x.mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = conv_bn(3, 12, act=nn.ReLU()), conv_bn(12, 24, act=nn.ReLU())
        self.bottom = conv_bn(24, 32, act=nn.ReLU())
        self.up2, self.join2 = nn.ConvTranspose2d(32, 24, 2, 2), conv_bn(48, 24, act=nn.ReLU())
        self.up1, self.join1 = nn.Upsample(scale_factor=2, mode="nearest"), conv_bn(36, 12, act=nn.LeakyReLU(0.1))
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        three = self.bottom(F.max_pool2d(two, 2))
        two = self.join2(torch.cat([self.up2(three), two], 1))
        one = self.join1(torch.cat([self.up1(two), one], 1))
        return self.head(one)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of ``(N, C, H, W)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand, self.project = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.project(F.gelu(self.expand(y)))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 24, 4, 4),
        ChannelNorm(24),
        ConvNeXtBlock(24),
        ConvNeXtBlock(24),
        ChannelNorm(24),
        nn.Conv2d(24, 32, 2, 2),
        ConvNeXtBlock(32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(32),
        nn.Linear(32, 10),
    )


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.5)
        self.position = nn.Parameter(torch.randn(1, 17, width) * 0.5)
        self.blocks = nn.Sequential(TransformerBlock(width, 4), TransformerBlock(width, 4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class MobileViT(nn.Module):
    """Convolutions, then attention over the pixels of unfolded 2x2 patches, folded back and joined."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 3, 2, act=nn.SiLU())
        self.mobile = InvertedResidual(16, 16, 2, nn.SiLU, None)
        self.local = nn.Sequential(conv_bn(16, 16, act=nn.SiLU()), nn.Conv2d(16, width, 1, bias=False))
        self.blocks = nn.Sequential(TransformerBlock(width, 2), TransformerBlock(width, 2), nn.LayerNorm(width))
        self.project, self.join = conv_bn(width, 16, 1, act=nn.SiLU()), conv_bn(32, 16, act=nn.SiLU())
        self.head = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.mobile(self.stem(image))
        y = self.local(x)
        batch, width, height, length = y.shape
        y = y.reshape(batch * width * height // 2, 2, length // 2, 2).transpose(1, 2)
        y = y.reshape(batch, width, height * length // 4, 4).transpose(1, 3).reshape(batch * 4, -1, width)
        y = self.blocks(y)
        y = y.reshape(batch, 4, -1, width).transpose(1, 3).reshape(batch * width * height // 2, length // 2, 2, 2)
        y = self.project(y.transpose(1, 2).reshape(batch, width, height, length))
        return self.head(self.join(torch.cat([x, y], 1)).mean((2, 3)))


class Bert(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(16, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.Sequential(TransformerBlock(width, 4), TransformerBlock(width, 4))
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.words(tokens) + self.positions(torch.arange(tokens.shape[1])))
        return self.classifier(torch.tanh(self.pooler(self.blocks(x)[:, 0])))


class Recurrent(nn.Module):
    def __init__(self, cell: Callable[..., nn.Module], layers: int, bidirectional: bool) -> None:
        super().__init__()
        self.cell = cell(8, 16, layers, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(32 if bidirectional else 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def audio_cnn() -> nn.Module:
    def block(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        return [conv, nn.BatchNorm1d(outputs), nn.PReLU(outputs)]

    return nn.Sequential(
        *block(1, 16, 9, 4),
        *block(16, 24, 5, 2),
        nn.MaxPool1d(2),
        *block(24, 32, 3, 1),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(32, 8),
    )


class TwoInTwoOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(conv_bn(3, 16, 3, 2, act=nn.ReLU()), conv_bn(16, 16, 3, 2, act=nn.Hardtanh()))
        self.features = nn.Sequential(nn.Linear(6, 16), nn.Tanh())
        self.label, self.box = nn.Linear(32, 5), nn.Sequential(nn.Linear(32, 4), nn.Sigmoid())

    def forward(self, image: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat([self.image(image).mean((2, 3)), self.features(features)], 1)
        return self.label(joined), self.box(joined)


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = conv_bn(3, 16, 3, 2, act=nn.ReLU()), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.shared(x))
        return self.head(F.relu(x - self.shared(x)).mean((2, 3)))


class ControlFlow(nn.Module):
    """Branches on a shape and on a setting; export resolves both once."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = conv_bn(3, 16, 3, 2, act=nn.ReLU6()), conv_bn(3, 8, act=nn.ReLU6())
        self.scale, self.head = True, nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(x) if x.shape[-1] > 16 else self.narrow(x)
        for _ in range(2):
            x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)
        if self.scale:
            x = x * 0.5
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@dataclass(frozen=True)
class Architecture:
    """A network to test on."""

    name: str
    factory: Callable[[], nn.Module]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...] = ("output",)

    def model(self, seed: int = 0) -> Model:
        """The network in eval mode, its weights drawn with this seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = self.factory()
            settle(module, self.samples(32, seed))
        return Model(module=module, reference=module, inputs=self.inputs, outputs=self.outputs)

    def samples(self, count: int, seed: int = 1) -> SampleSet:
        """Smooth random images and signals, random tokens; unlabelled."""
        return from_dataset(RandomSamples(self.inputs, count, seed), self.inputs, name=self.name)


def settle(module: nn.Module, samples: SampleSet) -> None:
    """Draw affine parameters of the batch norms and set their statistics from the samples; leave eval mode on."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
            norm.momentum = None  # a plain average over all batches
    module.train()
    with torch.no_grad():
        for batch in samples.batches(32):
            module(*batch.inputs)
    module.eval()


class RandomSamples(Dataset[tuple[Tensor, ...]]):
    """Sample ``i`` is the same whatever else is drawn."""

    def __init__(self, inputs: Sequence[TensorSpec], count: int, seed: int) -> None:
        self._inputs, self._count, self._seed = inputs, count, seed

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + index)
        return tuple(random_tensor(spec, generator) for spec in self._inputs)


def random_tensor(spec: TensorSpec, generator: torch.Generator) -> Tensor:
    """Tokens, or a smooth signal with some noise, of shape ``spec.shape``."""
    if spec.dtype == "int64":
        return torch.randint(0, VOCABULARY, spec.shape, generator=generator)
    fine = torch.randn(spec.shape, generator=generator)
    if len(spec.shape) < 2:
        return fine
    coarse_shape = (spec.shape[0], *(math.ceil(size / 8) for size in spec.shape[1:]))
    coarse = torch.randn(1, *coarse_shape, generator=generator)
    mode = "linear" if len(spec.shape) == 2 else "bilinear"
    return F.interpolate(coarse, spec.shape[1:], mode=mode)[0] * 1.2 + fine * 0.3


RGB = (TensorSpec(name="image", shape=(3, 32, 32)),)
SMALL_RGB = (TensorSpec(name="image", shape=(3, 16, 16)),)
GREY = (TensorSpec(name="image", shape=(1, 28, 28)),)
FEATURES = TensorSpec(name="features", shape=(6,))
SEQUENCE = (TensorSpec(name="sequence", shape=(6, 8)),)
TOKENS = (TensorSpec(name="tokens", shape=(16,), dtype="int64"),)
AUDIO = (TensorSpec(name="audio", shape=(1, 512)),)

ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("resnet", lambda: ResNet((16, 24), 1, 10), GREY),
        Architecture("mobilenet_v2", lambda: mobile(nn.ReLU6, None), RGB),
        Architecture("mobilenet_v3", lambda: mobile(nn.Hardswish, nn.Hardsigmoid()), RGB),
        Architecture("efficientnet", lambda: mobile(nn.SiLU, nn.Sigmoid()), RGB),
        Architecture("densenet", DenseNet, SMALL_RGB),
        Architecture("unet", UNet, RGB),
        Architecture("convnext", convnext, RGB),
        Architecture("vit", ViT, RGB),
        Architecture("mobilevit", MobileViT, RGB),
        Architecture("bert", Bert, TOKENS),
        Architecture("lstm", lambda: Recurrent(nn.LSTM, 2, False), SEQUENCE),
        Architecture("gru", lambda: Recurrent(nn.GRU, 1, False), SEQUENCE),
        Architecture("bilstm", lambda: Recurrent(nn.LSTM, 1, True), SEQUENCE),
        Architecture("audio_cnn", audio_cnn, AUDIO),
        Architecture("two_in_two_out", TwoInTwoOut, (*RGB, FEATURES), ("label", "box")),
        Architecture("called_twice", CalledTwice, RGB),
        Architecture("control_flow", ControlFlow, RGB),
    )
}
"""The seventeen architectures by name."""
