"""Small seeded networks of the architectures that users bring, built from transformers' configurations or by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core import TensorSpec

IMAGE = TensorSpec(name="image", shape=(3, 64, 64))
TOKENS = TensorSpec(name="tokens", shape=(16,), dtype="int64")
SEQUENCE = TensorSpec(name="sequence", shape=(12, 8))


class Logits(nn.Module):
    """A transformers model, returning its logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x, return_dict=False)[0]


class DenseNet(nn.Module):
    """Each layer reads the concatenation of all before it."""

    def __init__(self, growth: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 64, 1, bias=False),
                nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, growth, 3, padding=1, bias=False),
            )
            for channels in range(16, 80, growth)
        )  # fmt: skip
        self.transition = nn.Conv2d(80, 32, 1)
        self.classifier = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.classifier(torch.relu(self.transition(x)).mean((2, 3)))


class UNet(nn.Module):
    """Down twice, up by a transposed convolution and by interpolation, with concatenated skips: (N, 2, 64, 64)."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())

        self.top, self.middle, self.bottom = block(3, 16), block(16, 32, 2), block(32, 64, 2)
        self.up = nn.ConvTranspose2d(64, 32, 2, 2)
        self.merge2, self.merge1, self.mask = block(64, 32), block(48, 16), nn.Conv2d(16, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        top = self.top(image)
        middle = self.middle(top)
        x = self.merge2(torch.cat([self.up(self.bottom(middle)), middle], 1))
        x = nn.functional.interpolate(x, scale_factor=2.0)
        return self.mask(self.merge1(torch.cat([x, top], 1)))


class Recurrent(nn.Module):
    """A linear layer, a recurrent one, and a classifier of the last step."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.embed, self.recurrent, self.classifier = (
            nn.Linear(8, 64),
            kind(64, 64, batch_first=True),
            nn.Linear(64, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.recurrent(self.embed(x))[0][:, -1])


def _transformers(name: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        family, _, task = name.partition("For")
        configuration = getattr(transformers, f"{family}Config")(**settings)
        return Logits(getattr(transformers, f"{family}For{task}")(configuration))

    return build


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], TensorSpec]] = {
    "resnet": (
        _transformers(
            "ResNetForImageClassification",
            embedding_size=16, hidden_sizes=[32, 64, 64, 128], depths=[1] * 4, num_labels=10,
        ),
        IMAGE,
    ),
    "mobilenet_v2": (
        _transformers("MobileNetV2ForImageClassification", depth_multiplier=0.5, image_size=64, num_labels=10),
        IMAGE,
    ),
    "efficientnet": (
        _transformers(
            "EfficientNetForImageClassification",
            width_coefficient=0.5, depth_coefficient=0.3, image_size=64, num_labels=10, hidden_dim=640,
        ),
        IMAGE,
    ),
    "convnext": (
        _transformers("ConvNextForImageClassification", hidden_sizes=[16, 32, 64, 64], depths=[1] * 4, num_labels=10),
        IMAGE,
    ),
    "vit": (
        _transformers(
            "ViTForImageClassification",
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
            image_size=64, patch_size=16, num_labels=10,
        ),
        IMAGE,
    ),
    "mobilevit": (
        _transformers(
            "MobileViTForImageClassification", image_size=64, hidden_sizes=[48, 64, 80], num_labels=10,
            neck_hidden_sizes=[16, 32, 64, 64, 80, 80, 320],
        ),
        IMAGE,
    ),
    "bert": (
        _transformers(
            "BertForSequenceClassification", vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=128, num_labels=3, max_position_embeddings=32,
        ),
        TOKENS,
    ),
    "distilbert": (
        _transformers(
            "DistilBertForSequenceClassification", vocab_size=100, dim=64, n_layers=2, n_heads=4, hidden_dim=128,
            num_labels=3, max_position_embeddings=32,
        ),
        TOKENS,
    ),
    "densenet": (DenseNet, IMAGE),
    "unet": (UNet, IMAGE),
    "lstm": (lambda: Recurrent(nn.LSTM), SEQUENCE),
    "gru": (lambda: Recurrent(nn.GRU), SEQUENCE),
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, tuple[TensorSpec, ...]]:
    """A seeded network in eval mode, and its inputs."""
    torch.manual_seed(0)
    network, spec = ARCHITECTURES[name]
    return network().eval(), (spec,)
