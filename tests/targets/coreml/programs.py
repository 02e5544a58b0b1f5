"""Tiny programs that the Core ML tests lower."""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed  # registers quantized_decomposed operators
from torch import Tensor, nn

from pipeline.core import Model, TensorSpec
from pipeline.models.capture import capture

IMAGE = TensorSpec(name="image", shape=(1, 28, 28))


class HandQuantized(nn.Module):
    """A convolution and a linear layer in the Q/DQ form that PT2E produces; every scale is a power of two."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv_weight = nn.Parameter(torch.randn(8, 1, 3, 3, generator=generator))
        self.conv_bias = nn.Parameter(torch.randn(8, generator=generator).mul(64).round() / 64)
        self.linear_weight = nn.Parameter(torch.randn(10, 8, generator=generator))

    def forward(self, image: Tensor) -> Tensor:
        x = self._activation(image, 2**-5, 5)
        x = torch.relu(nn.functional.conv2d(x, self._weight(self.conv_weight), self.conv_bias))
        x = self._activation(x, 2**-5, -128).mean((2, 3))
        x = self._activation(x, 2**-6, -128)
        return self._activation(nn.functional.linear(x, self._weight(self.linear_weight)), 2**-4, 3)

    def _activation(self, x: Tensor, scale: float, zero_point: int) -> Tensor:
        form = (scale, zero_point, -128, 127, torch.int8)
        ops = torch.ops.quantized_decomposed
        return ops.dequantize_per_tensor.default(ops.quantize_per_tensor.default(x, *form), *form)

    def _weight(self, weight: Tensor) -> Tensor:
        scale = torch.exp2(torch.log2(weight.detach().abs().flatten(1).amax(1) / 127).ceil())
        form = (scale, torch.zeros_like(scale, dtype=torch.int64), 0, -127, 127, torch.int8)
        ops = torch.ops.quantized_decomposed
        return ops.dequantize_per_channel.default(ops.quantize_per_channel.default(weight, *form), *form)


def model_of(module: nn.Module, *inputs: TensorSpec, quantized: bool = False) -> Model:
    inputs = inputs or (IMAGE,)
    module.eval()
    program = capture(module, inputs).module() if quantized else module
    return Model(module=program, reference=module, inputs=inputs, quantized=quantized)
