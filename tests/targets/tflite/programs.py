"""Quantized programs written by hand, whose integers a test can compute on paper."""

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import nn

from pipeline.core import Model, TensorSpec

ops = torch.ops.quantized_decomposed


def through_int8(x, scale, zero_point):
    """Quantize and dequantize an activation."""
    quantized = ops.quantize_per_tensor.default(x, scale, zero_point, -128, 127, torch.int8)
    return ops.dequantize_per_tensor.default(quantized, scale, zero_point, -128, 127, torch.int8)


class QuantizedLinear(nn.Module):
    """``y = W x + b``; x in steps of 0.5, y in steps of 0.25 around zero point 4."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 0.25]]))
        self.bias = nn.Parameter(torch.tensor([1.0, -1.0]))
        self.register_buffer("scales", torch.tensor([0.5, 0.25]))
        self.register_buffer("zero_points", torch.zeros(2, dtype=torch.int64))

    def forward(self, x):
        quantized = ops.quantize_per_channel.default(
            self.weight, self.scales, self.zero_points, 0, -127, 127, torch.int8
        )
        weight = ops.dequantize_per_channel.default(quantized, self.scales, self.zero_points, 0, -127, 127, torch.int8)
        return through_int8(nn.functional.linear(through_int8(x, 0.5, 0), weight, self.bias), 0.25, 4)


class QuantizedConv(nn.Module):
    """A 3x3 convolution with padding 1, batch norm already folded, and a fused ReLU."""

    def __init__(self, in_channels=3, out_channels=8, stride=1):
        super().__init__()
        self.stride = stride
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3, generator=generator))
        self.bias = nn.Parameter(torch.randn(out_channels, generator=generator))
        self.register_buffer("scales", self.weight.detach().abs().amax((1, 2, 3)) / 127)
        self.register_buffer("zero_points", torch.zeros(out_channels, dtype=torch.int64))

    def forward(self, x):
        quantized = ops.quantize_per_channel.default(
            self.weight, self.scales, self.zero_points, 0, -127, 127, torch.int8
        )
        weight = ops.dequantize_per_channel.default(quantized, self.scales, self.zero_points, 0, -127, 127, torch.int8)
        y = nn.functional.conv2d(through_int8(x, 0.05, 3), weight, self.bias, self.stride, padding=1)
        return through_int8(nn.functional.relu(y), 0.1, -128)


def model(module, *shapes, quantized):
    """A model of a module whose inputs are float tensors of these shapes (without the batch)."""
    inputs = tuple(TensorSpec(name=f"input_{index}", shape=shape) for index, shape in enumerate(shapes))
    return Model(module=module.eval(), reference=module, inputs=inputs, outputs=("scores",), quantized=quantized)
