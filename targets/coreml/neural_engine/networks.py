"""Published networks, rebuilt with seeded weights, as the operator work that their Core ML programs ask for.

Weights do not change latency, so none are downloaded. ``python -m targets.coreml.neural_engine.networks`` converts
each network to an ML Program in FP16 and writes ``operators.csv``; it needs transformers, which comes with the tflite
extra. Networks that transformers does not have are written out below, as they are deployed: batch norm folded and
training-time branches merged.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core import TensorSpec
from pipeline.models.capture import capture
from targets.coreml.interpreter.package import read_package
from targets.coreml.interpreter.program import read_program
from targets.coreml.neural_engine.work import Work, works
from targets.coreml.sdk import coremltools, quiet

OPERATORS_CSV = Path(__file__).parent / "operators.csv"


@dataclass(frozen=True, slots=True)
class Published:
    """How to build a network, and what it takes. ``size`` is the side of its image in pixels."""

    build: Callable[[], nn.Module]
    size: int = 224
    channels: int = 3


class First(nn.Module):
    """A transformers model with a tensor in and a tensor out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image)[0]  # type: ignore[no-any-return]


def hugging_face(config: str, *, backbone: bool = False, **settings: Any) -> Callable[[], nn.Module]:
    """An image classifier, or its feature extractor, from a configuration class of transformers."""

    def build() -> nn.Module:
        import transformers

        auto: Any = transformers.AutoModel if backbone else transformers.AutoModelForImageClassification
        configuration = getattr(transformers, config)(num_labels=1000, **settings)
        return First(auto.from_config(configuration))

    return build


def conv(i: int, o: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size, or divides it by the stride."""
    return nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups)


class Residual(nn.Module):
    """Adds what a block makes of its input; ``scaled`` multiplies it by a learnt factor per channel (layer scale)."""

    def __init__(self, *block: nn.Module, channels: int | None = None) -> None:
        super().__init__()
        self.block = nn.Sequential(*block)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.1)) if channels else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return x + (y if self.scale is None else y * self.scale)  # type: ignore[no-any-return]


class SqueezeExcite(nn.Module):
    """Channels weighted by what their means say."""

    def __init__(self, channels: int, hidden: int, gate: nn.Module) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), conv(channels, hidden), nn.ReLU(), conv(hidden, channels), gate
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(x)  # type: ignore[no-any-return]


def head(channels: int) -> nn.Sequential:
    """Mean over the places, then a linear classifier."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def mobileone(*widths: float) -> Callable[[], nn.Module]:
    """MobileOne as deployed (arXiv 2206.04040, table 2): depthwise and pointwise convolutions in turn."""

    def build() -> nn.Module:
        stem = min(64, int(64 * widths[0]))
        layers: list[nn.Module] = [conv(3, stem, 3, 2), nn.ReLU()]
        i = stem
        for base, width, depth in zip((64, 128, 256, 512), widths, (2, 8, 10, 1), strict=True):
            for block in range(depth):
                o = int(base * width)
                layers += [conv(i, i, 3, 2 if block == 0 else 1, groups=i), nn.ReLU(), conv(i, o), nn.ReLU()]
                i = o
        return nn.Sequential(*layers, head(i))

    return build


class ImageAttention(nn.Module):
    """Multi-head self-attention over the places of an image (FastViT: heads of 32 channels)."""

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.width, self.qkv, self.project = width, nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).reshape(n, h * w, 3, -1, self.width).permute(2, 0, 3, 1, 4)
        weights = (q * self.width**-0.5 @ k.transpose(-2, -1)).softmax(-1)
        return self.project((weights @ v).transpose(1, 2).reshape(n, h * w, c)).transpose(1, 2).reshape(n, c, h, w)  # type: ignore[no-any-return]


def fastvit(
    depths: tuple[int, ...], width: int, ratio: int, *, attention: bool, classes: bool = True
) -> Callable[[], nn.Module]:
    """FastViT as deployed (arXiv 2303.14189, table 1)."""

    def feed_forward(c: int) -> nn.Module:
        return Residual(conv(c, c, 7, groups=c), conv(c, c * ratio), nn.GELU(), conv(c * ratio, c), channels=c)

    def build() -> nn.Module:
        stem = (conv(3, width, 3, 2), nn.GELU(), conv(width, width, 3, 2, groups=width), nn.GELU(), conv(width, width))
        layers: list[nn.Module] = [*stem, nn.GELU()]
        c = width
        for stage, depth in enumerate(depths):
            if stage:
                layers += [conv(c, 2 * c, 7, 2, groups=c), nn.GELU(), conv(2 * c, 2 * c), nn.GELU()]
                c *= 2
            attends = attention and stage == len(depths) - 1
            layers += [conv(c, c, 7, groups=c)] if attends else []
            for _ in range(depth):
                mixer = (
                    Residual(nn.BatchNorm2d(c), ImageAttention(c), channels=c) if attends else conv(c, c, 3, groups=c)
                )
                layers += [mixer, feed_forward(c)]
        if classes:
            layers += [conv(c, 2 * c, 3, groups=c), SqueezeExcite(2 * c, c // 8, nn.Sigmoid()), nn.GELU(), head(2 * c)]
        return nn.Sequential(*layers)

    return build


class PoolMixer(nn.Module):
    """Mean over the neighbours, minus the place itself (MetaFormer)."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) - x  # type: ignore[no-any-return]


class TokenBlock(nn.Module):
    """EfficientFormer's transformer block: 8 heads with keys of 32 and values of 128 channels."""

    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(channels) for _ in range(2)])
        self.qkv, self.project = nn.Linear(channels, 8 * (32 + 32 + 128)), nn.Linear(8 * 128, channels)
        self.bias = nn.Parameter(torch.zeros(8, tokens, tokens))
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.scales = nn.Parameter(torch.full((2, channels), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norms[0](x)).reshape(n, t, 8, -1).split([32, 32, 128], -1)
        weights = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * 32**-0.5 + self.bias).softmax(-1)
        x = x + self.scales[0] * self.project((weights @ v.transpose(1, 2)).transpose(1, 2).reshape(n, t, -1))
        return x + self.scales[1] * self.feed_forward(self.norms[1](x))  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """From an image to a row of places."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class TokenHead(nn.Module):
    """Normalise, take the mean token, classify (the distillation head beside it is averaged in)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.heads = nn.LayerNorm(channels), nn.ModuleList([nn.Linear(channels, 1000) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        mean = self.norm(x).mean(1)
        return (self.heads[0](mean) + self.heads[1](mean)) / 2  # type: ignore[no-any-return]


def efficientformer(
    widths: tuple[int, ...], depths: tuple[int, ...], transformers: int, *, size: int = 224, classes: bool = True
) -> Callable[[], nn.Module]:
    """EfficientFormer as deployed (arXiv 2206.01191, table 5): pooling blocks, the last ones attention on tokens."""

    def build() -> nn.Module:
        c = widths[0]
        layers: list[nn.Module] = [conv(3, c // 2, 3, 2), nn.ReLU(), conv(c // 2, c, 3, 2), nn.ReLU()]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            layers += [conv(c, width, 3, 2)] if stage else []
            c = width
            pools = depth - transformers if stage == 3 else depth
            for _ in range(pools):
                layers += [Residual(PoolMixer(), channels=c)]
                layers += [Residual(conv(c, 4 * c), nn.GELU(), conv(4 * c, c), channels=c)]
        layers += [Tokens(), *(TokenBlock(c, (size // 32) ** 2) for _ in range(transformers))]
        return nn.Sequential(*layers, *([TokenHead(c)] if classes else []))

    return build


class DenseLayer(nn.Module):
    """Normalise, reduce to 128 channels, make 32 new ones, and append them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.make = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), conv(channels, 128), nn.ReLU(), conv(128, 32, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.make(x)], 1)


def densenet121() -> nn.Module:
    """DenseNet-121 (arXiv 1608.06993, table 1)."""
    layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    c = 64
    for stage, depth in enumerate((6, 12, 24, 16)):
        if stage:
            layers += [nn.BatchNorm2d(c), nn.ReLU(), conv(c, c // 2), nn.AvgPool2d(2)]
            c //= 2
        layers += [DenseLayer(c + 32 * index) for index in range(depth)]
        c += 32 * depth
    return nn.Sequential(*layers, nn.BatchNorm2d(c), nn.ReLU(), head(c))


SMALL = (
    "3 16 16 1 r 2;3 72 24 0 r 2;3 88 24 0 r 1;5 96 40 1 h 2;5 240 40 1 h 1;5 240 40 1 h 1;5 120 48 1 h 1;"
    "5 144 48 1 h 1;5 288 96 1 h 2;5 576 96 1 h 1;5 576 96 1 h 1"
)
LARGE = (
    "3 16 16 0 r 1;3 64 24 0 r 2;3 72 24 0 r 1;5 72 40 1 r 2;5 120 40 1 r 1;5 120 40 1 r 1;3 240 80 0 h 2;"
    "3 200 80 0 h 1;3 184 80 0 h 1;3 184 80 0 h 1;3 480 112 1 h 1;3 672 112 1 h 1;5 672 160 1 h 2;5 960 160 1 h 1;"
    "5 960 160 1 h 1"
)


def mobilenetv3(rows: str, last: int, hidden: int, *, classes: bool = True) -> Callable[[], nn.Module]:
    """MobileNetV3 (arXiv 1905.02244, tables 1 and 2); a row: kernel, expansion, outputs, squeeze, act, stride."""

    def build() -> nn.Module:
        layers: list[nn.Module] = [conv(3, 16, 3, 2), nn.Hardswish()]
        i = 16
        for kernel, wide, o, squeeze, activation, stride in (row.split() for row in rows.split(";")):
            e, act = int(wide), nn.ReLU if activation == "r" else nn.Hardswish
            block: list[nn.Module] = [conv(i, e), act()] if e != i else []
            block += [conv(e, e, int(kernel), int(stride), groups=e), act()]
            block += [SqueezeExcite(e, (e // 4 + 7) // 8 * 8, nn.Hardsigmoid())] if squeeze == "1" else []
            block += [conv(e, int(o))]
            layers += [Residual(*block)] if stride == "1" and i == int(o) else block
            i = int(o)
        layers += [conv(i, last), nn.Hardswish()]
        if classes:
            layers += [
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(last, hidden),
                nn.Hardswish(),
                nn.Linear(hidden, 1000),
            ]
        return nn.Sequential(*layers)

    return build


def stack(depth: int) -> Callable[[], nn.Module]:
    """1×1 convolutions of 512 channels, one after another."""
    return lambda: nn.Sequential(*(conv(512, 512) for _ in range(depth)))


L1 = ((48, 96, 224, 448), (3, 2, 6, 4), 1)
L3 = ((64, 128, 320, 512), (4, 4, 12, 6), 4)
L7 = ((96, 192, 384, 768), (6, 6, 18, 8), 8)
NETWORKS: dict[str, Published] = {
    "128x conv1x1 512ch 64x64": Published(stack(128), 64, 512),
    "64x conv1x1 512ch 64x64": Published(stack(64), 64, 512),
    "ConvNeXt-T": Published(hugging_face("ConvNextConfig")),
    "DeiT-S": Published(hugging_face("ViTConfig", hidden_size=384, num_attention_heads=6, intermediate_size=1536)),
    "DeiT-T": Published(hugging_face("ViTConfig", hidden_size=192, num_attention_heads=3, intermediate_size=768)),
    "DenseNet121": Published(densenet121),
    "EfficientFormer-L1": Published(efficientformer(*L1)),
    "EfficientFormer-L1 backbone": Published(efficientformer(*L1, size=512, classes=False), 512),
    "EfficientFormer-L3": Published(efficientformer(*L3)),
    "EfficientFormer-L3 backbone": Published(efficientformer(*L3, size=512, classes=False), 512),
    "EfficientFormer-L7": Published(efficientformer(*L7)),
    "EfficientNet-B3": Published(
        hugging_face(
            "EfficientNetConfig", width_coefficient=1.2, depth_coefficient=1.4, image_size=300, hidden_dim=1536
        ),
        300,
    ),
    "FastViT-MA36": Published(fastvit((6, 6, 18, 6), 76, 4, attention=True), 256),
    "FastViT-SA12": Published(fastvit((2, 2, 6, 2), 64, 4, attention=True), 256),
    "FastViT-SA12 backbone": Published(fastvit((2, 2, 6, 2), 64, 4, attention=True, classes=False), 512),
    "FastViT-SA24": Published(fastvit((4, 4, 12, 4), 64, 4, attention=True), 256),
    "FastViT-SA36": Published(fastvit((6, 6, 18, 6), 64, 4, attention=True), 256),
    "FastViT-T8": Published(fastvit((2, 2, 4, 2), 48, 3, attention=False), 256),
    "MobileNetV1": Published(hugging_face("MobileNetV1Config")),
    "MobileNetV2-1.0": Published(hugging_face("MobileNetV2Config")),
    "MobileNetV3 backbone": Published(mobilenetv3(LARGE, 960, 1280, classes=False), 512),
    "MobileNetV3-L": Published(mobilenetv3(LARGE, 960, 1280)),
    "MobileNetV3-small": Published(mobilenetv3(SMALL, 576, 1024)),
    "MobileOne-S0": Published(mobileone(0.75, 1, 1, 2)),
    "MobileOne-S1": Published(mobileone(1.5, 1.5, 2, 2.5)),
    "MobileOne-S3": Published(mobileone(2, 2.5, 3, 4)),
    "MobileViT-XS": Published(
        hugging_face("MobileViTConfig", hidden_sizes=[96, 120, 144], neck_hidden_sizes=[16, 32, 48, 64, 80, 96, 384]),
        256,
    ),
    "MobileViTv2-1.0": Published(hugging_face("MobileViTV2Config"), 256),
    "MobileViTv2-1.5": Published(hugging_face("MobileViTV2Config", width_multiplier=1.5), 256),
    "MobileViTv2-2.0": Published(hugging_face("MobileViTV2Config", width_multiplier=2.0), 256),
    "PVTv2-B0 backbone": Published(hugging_face("PvtV2Config", backbone=True, image_size=512), 512),
    "PoolFormer-S12": Published(hugging_face("PoolFormerConfig")),
    "PoolFormer-S12 backbone": Published(hugging_face("PoolFormerConfig", backbone=True), 512),
    "PoolFormer-S24": Published(hugging_face("PoolFormerConfig", depths=[4, 4, 12, 4])),
    "PoolFormer-S24 backbone": Published(hugging_face("PoolFormerConfig", depths=[4, 4, 12, 4], backbone=True), 512),
    "PoolFormer-S36": Published(hugging_face("PoolFormerConfig", depths=[6, 6, 18, 6])),
    "ResNet18 backbone": Published(
        hugging_face(
            "ResNetConfig", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", backbone=True
        ),
        512,
    ),
    "ResNet50": Published(hugging_face("ResNetConfig")),
    "SwiftFormer-XS": Published(hugging_face("SwiftFormerConfig")),
}


def measure(network: Published) -> Counter[Work]:
    """Convert to an FP16 ML Program, save it, read it back, and count its operators' work."""
    ct = coremltools()
    torch.manual_seed(0)
    shape = (network.channels, network.size, network.size)
    program = capture(network.build().eval(), (TensorSpec(name="image", shape=shape),), batch_size=1)
    with tempfile.TemporaryDirectory() as folder, quiet():
        model = ct.convert(
            program.run_decompositions({}),
            inputs=[ct.TensorType(name="image", shape=(1, *shape))],
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
        )
        path = Path(folder) / "network.mlpackage"
        model.save(str(path))
        return works(read_program(read_package(path)))


def read_operators(path: Path = OPERATORS_CSV) -> dict[str, Counter[Work]]:
    """The committed work of each network, by its name."""
    found: dict[str, Counter[Work]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            work = Work(row["kind"], *(int(row[field.name]) for field in fields(Work)[1:]))  # type: ignore[arg-type]
            found.setdefault(row["network"], Counter())[work] += int(row["count"])
    return found


def write_operators(found: dict[str, Counter[Work]], path: Path = OPERATORS_CSV) -> None:
    """Write what `read_operators` reads."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["network", "count", *(field.name for field in fields(Work))])
        for name in sorted(found):
            rows = sorted((count, *astuple(work)) for work, count in found[name].items())
            writer.writerows((name, *row) for row in rows)


def main(names: list[str]) -> None:
    """Measure the networks named, or all, and keep the others as they were written before."""
    found = read_operators() if OPERATORS_CSV.exists() else {}
    for name in names or NETWORKS:
        found[name] = measure(NETWORKS[name])
        macs = sum(work.macs * count for work, count in found[name].items())
        weights = sum(work.weights * count for work, count in found[name].items())
        print(f"{name}: {macs / 1e6:.0f} M MACs, {weights / 1e6:.2f} M weights, {found[name].total()} operators")
        write_operators(found)


if __name__ == "__main__":
    main(sys.argv[1:])
