"""The networks that benchmarks run on: published architectures at 224x224 with seeded weights.

Speed, fusion and parity do not depend on trained weights; batch norm statistics are those of seeded noise, so that
activations have the ranges a calibrated network has. Tables follow the papers named in each docstring.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.core import Model, TensorSpec

CLASSES = 1000


def conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: Callable[[], nn.Module] | None = None
) -> nn.Sequential:
    """Convolution with "same" padding, batch norm, and an activation where one is given."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


class Residual(nn.Module):
    """``act(main(x) + shortcut(x))``."""

    def __init__(self, main: nn.Module, shortcut: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.main, self.shortcut, self.act = main, shortcut, act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.main(x) + self.shortcut(x))


class Classifier(nn.Module):
    """Features, the mean over height and width, and a linear layer."""

    def __init__(self, features: nn.Module, channels: int, *head: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(*head, nn.Linear(channels, CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.pool(self.features(image)).flatten(1))


def resnet(depths: tuple[int, ...], *, bottleneck: bool) -> nn.Module:
    """He et al. 2016, https://arxiv.org/abs/1512.03385; the stride sits in the 3x3 convolution."""
    layers = [conv_bn(3, 64, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        outputs = width * (4 if bottleneck else 1)
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            if bottleneck:
                main = nn.Sequential(
                    conv_bn(channels, width, 1, act=nn.ReLU),
                    conv_bn(width, width, 3, stride, act=nn.ReLU),
                    conv_bn(width, outputs, 1),
                )
            else:
                main = nn.Sequential(conv_bn(channels, width, 3, stride, act=nn.ReLU), conv_bn(width, outputs, 3))
            same = stride == 1 and channels == outputs
            layers.append(Residual(main, nn.Identity() if same else conv_bn(channels, outputs, 1, stride), nn.ReLU()))
            channels = outputs
    return Classifier(nn.Sequential(*layers), channels)


def mobilenet_v2() -> nn.Module:
    """Sandler et al. 2018, https://arxiv.org/abs/1801.04381, table 2."""
    layers = [conv_bn(3, 32, 3, 2, act=nn.ReLU6)]
    channels = 32
    for expansion, outputs, repeats, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for block in range(repeats):
            layers.append(
                inverted_bottleneck(
                    channels, channels * expansion, outputs, 3, stride if block == 0 else 1, nn.ReLU6, squeeze=None
                )
            )
            channels = outputs
    return Classifier(nn.Sequential(*layers, conv_bn(channels, 1280, 1, act=nn.ReLU6)), 1280)


class SqueezeExcite(nn.Module):
    """Channel gates from the global mean (https://arxiv.org/abs/1709.01507)."""

    def __init__(self, channels: int, squeezed: int, act: Callable[[], nn.Module], gate: nn.Module) -> None:
        super().__init__()
        self.gates = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, squeezed, 1), act(), nn.Conv2d(squeezed, channels, 1), gate
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gates(x)


def inverted_bottleneck(
    inputs: int,
    expanded: int,
    outputs: int,
    kernel: int,
    stride: int,
    act: Callable[[], nn.Module],
    squeeze: Callable[[], nn.Module] | None,
) -> nn.Module:
    """1x1 expansion, depthwise convolution, optional gates, 1x1 projection; residual where the shape allows."""
    layers = [] if expanded == inputs else [conv_bn(inputs, expanded, 1, act=act)]
    layers.append(conv_bn(expanded, expanded, kernel, stride, groups=expanded, act=act))
    if squeeze is not None:
        layers.append(nn.Sequential(squeeze()))
    main = nn.Sequential(*layers, conv_bn(expanded, outputs, 1))
    return Residual(main, nn.Identity(), nn.Identity()) if stride == 1 and inputs == outputs else main


def mobilenet_v3_large() -> nn.Module:
    """Howard et al. 2019, https://arxiv.org/abs/1905.02244, table 1."""
    layers = [conv_bn(3, 16, 3, 2, act=nn.Hardswish)]
    channels = 16
    for kernel, expanded, outputs, squeezes, act, stride in (
        (3, 16, 16, False, nn.ReLU, 1),
        (3, 64, 24, False, nn.ReLU, 2),
        (3, 72, 24, False, nn.ReLU, 1),
        (5, 72, 40, True, nn.ReLU, 2),
        (5, 120, 40, True, nn.ReLU, 1),
        (5, 120, 40, True, nn.ReLU, 1),
        (3, 240, 80, False, nn.Hardswish, 2),
        (3, 200, 80, False, nn.Hardswish, 1),
        (3, 184, 80, False, nn.Hardswish, 1),
        (3, 184, 80, False, nn.Hardswish, 1),
        (3, 480, 112, True, nn.Hardswish, 1),
        (3, 672, 112, True, nn.Hardswish, 1),
        (5, 672, 160, True, nn.Hardswish, 2),
        (5, 960, 160, True, nn.Hardswish, 1),
        (5, 960, 160, True, nn.Hardswish, 1),
    ):

        def squeeze(expanded: int = expanded) -> nn.Module:
            return SqueezeExcite(expanded, round(expanded / 32) * 8, nn.ReLU, nn.Hardsigmoid())

        gates = squeeze if squeezes else None
        layers.append(inverted_bottleneck(channels, expanded, outputs, kernel, stride, act, gates))
        channels = outputs
    return Classifier(
        nn.Sequential(*layers, conv_bn(channels, 960, 1, act=nn.Hardswish)), 1280, nn.Linear(960, 1280), nn.Hardswish()
    )


def efficientnet_b0() -> nn.Module:
    """Tan and Le 2019, https://arxiv.org/abs/1905.11946, table 1."""
    layers = [conv_bn(3, 32, 3, 2, act=nn.SiLU)]
    channels = 32
    for expansion, outputs, repeats, stride, kernel in (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ):
        for block in range(repeats):

            def squeeze(inputs: int = channels, expanded: int = channels * expansion) -> nn.Module:
                return SqueezeExcite(expanded, inputs // 4, nn.SiLU, nn.Sigmoid())

            layers.append(
                inverted_bottleneck(
                    channels, channels * expansion, outputs, kernel, stride if block == 0 else 1, nn.SiLU, squeeze
                )
            )
            channels = outputs
    return Classifier(nn.Sequential(*layers, conv_bn(channels, 1280, 1, act=nn.SiLU)), 1280)


class Dense(nn.Module):
    """Batch norm, ReLU, 1x1, batch norm, ReLU, 3x3; the input is concatenated with the result."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            conv_bn(channels, 4 * growth, 1, act=nn.ReLU),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet121() -> nn.Module:
    """Huang et al. 2017, https://arxiv.org/abs/1608.06993, table 1."""
    layers = [conv_bn(3, 64, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    channels, growth = 64, 32
    for stage, depth in enumerate((6, 12, 24, 16)):
        for _ in range(depth):
            layers.append(Dense(channels, growth))
            channels += growth
        if stage < 3:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
            channels //= 2
    return Classifier(nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU()), channels)


class Attention(nn.Module):
    """Multi-head self-attention on ``(N, tokens, width)``, written out as matrix products."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, width = x.shape
        split = self.qkv(x).reshape(count, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = split[0], split[1], split[2]
        scores = (query * (width // self.heads) ** -0.5) @ key.transpose(-2, -1)
        return self.out((scores.softmax(-1) @ value).transpose(1, 2).reshape(count, tokens, width))


class VisionTransformer(nn.Module):
    """Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929; "tiny" is DeiT's, https://arxiv.org/abs/2012.12877."""

    def __init__(self, width: int = 192, depth: int = 12, heads: int = 3, patch: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, (224 // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    Residual(nn.Sequential(nn.LayerNorm(width), Attention(width, heads)), nn.Identity(), nn.Identity()),
                    Residual(
                        nn.Sequential(
                            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
                        ),
                        nn.Identity(),
                        nn.Identity(),
                    ),
                )
                for _ in range(depth)
            )
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


FACTORIES: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: resnet((2, 2, 2, 2), bottleneck=False),
    "resnet50": lambda: resnet((3, 4, 6, 3), bottleneck=True),
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_large": mobilenet_v3_large,
    "efficientnet_b0": efficientnet_b0,
    "densenet121": densenet121,
    "vit_tiny": VisionTransformer,
}
CNNS = tuple(name for name in FACTORIES if name != "vit_tiny")


def images(count: int, seed: int = 0) -> Tensor:
    """Seeded, spatially smooth images ``(N, 3, 224, 224) float32``; white noise would vanish in the first pool."""
    coarse = torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(224, 224), mode="bilinear")


def build(name: str) -> Model:
    """The named network as a `Model`, with the same weights in every process."""
    torch.manual_seed(0)
    module = FACTORIES[name]()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0  # statistics are exactly those of the one batch below
    with torch.no_grad():
        module.train()(images(8))
    return Model(
        module=module.eval(),
        reference=module,
        inputs=(TensorSpec(name="image", shape=(3, 224, 224)),),
        outputs=("logits",),
    )
