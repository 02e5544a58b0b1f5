"""Quantized programs around one layer each, for what the targets say of kernels that compute in float."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core import Model, TensorSpec
from pipeline.models.capture import capture
from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.quantize import quantize
from tests.networks.architectures import ARCHITECTURES
from tests.targets.tflite.programs import QuantizedConv, through_int8

IMAGE = (3, 10, 10)


class Between(nn.Module):
    """A quantized convolution, the layer, and its result in int8."""

    def __init__(self, layer: Callable[[Tensor], Tensor], scale: float = 0.05, zero_point: int = -20) -> None:
        super().__init__()
        self.conv, self.layer, self.scale, self.zero_point = QuantizedConv(), layer, scale, zero_point

    def forward(self, image: Tensor) -> Tensor:
        return through_int8(self.layer(self.conv(image)), self.scale, self.zero_point)


class PReLU(nn.Module):
    """One slope per channel, quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.linspace(0.05, 0.4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, through_int8(self.slope, 0.01, -128))


class LayerNorm(nn.Module):
    """Over the last axis, its weight and bias quantized."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.rand(10, generator=generator))
        self.bias = nn.Parameter(torch.randn(10, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = through_int8(self.weight, 0.01, -128), through_int8(self.bias, 0.02, 0)
        return F.layer_norm(x, (10,), weight, bias)


class Embedding(nn.Module):
    """Adds a quantized constant."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 10, 10, generator=torch.Generator().manual_seed(4)))

    def forward(self, x: Tensor) -> Tensor:
        return x + through_int8(self.weight, 0.03, 0)


class Attention(nn.Module):
    """Queries times a factor and keys, a softmax, and the product with the values: ``(N, 2, 4, 100)``."""

    def forward(self, x: Tensor) -> Tensor:
        x = through_int8(x.reshape(-1, 2, 4, 100), 0.1, -128)
        keys = through_int8(x.transpose(2, 3), 0.1, -128)
        scores = through_int8(through_int8(x * 0.37, 0.037, -128) @ keys, 0.25, -3)
        weights = through_int8(scores.softmax(-1), 1 / 256, -128)
        return weights @ x


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "hardswish": lambda: Between(F.hardswish),
    "gelu": lambda: Between(F.gelu),
    "attention": lambda: Between(Attention()),
    "layer_norm": lambda: Between(LayerNorm()),
    "prelu": lambda: Between(PReLU()),
    "elu": lambda: Between(F.elu),
    "embedding": lambda: Between(Embedding()),
    "convolution": QuantizedConv,
}


def model_of(name: str) -> Model:
    """The captured program around one of `LAYERS`."""
    inputs = (TensorSpec(name="image", shape=IMAGE),)
    module = LAYERS[name]().eval()
    program = capture(module, inputs).module()
    return Model(module=program, reference=module, inputs=inputs, outputs=("result",), quantized=True)


def calibrated(name: str) -> Model:
    """One of the test networks, calibrated on 32 samples with the plainest settings."""
    architecture = ARCHITECTURES[name]
    config = QuantizeConfig(observers=("minmax",), bias_correction=False, equalisation=False, mixed_precision=False)
    return quantize(architecture.model(), config, architecture.samples(32), budget=Budget(metric="agreement"))
