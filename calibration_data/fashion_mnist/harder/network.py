"""Inverted residual networks for 28x28 greyscale images, with what is hard about MobileNets and EfficientNets."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

Activation = Callable[[], nn.Module]


def conv_bn(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: nn.Module | None = None
) -> nn.Sequential:
    """Convolution, batch norm and, where given, an activation: ``(N, C, H, W) -> (N, C', H/stride, W/stride)``."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([] if act is None else [act]))


class SqueezeExcite(nn.Module):
    """Channels weighted by gates computed from all channels (Hu et al. 2018, https://arxiv.org/abs/1709.01507)."""

    def __init__(self, channels: int, gate: nn.Module) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, max(4, channels // 4), 1)
        self.expand = nn.Conv2d(max(4, channels // 4), channels, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        squeezed = functional.adaptive_avg_pool2d(x, 1)
        weights: Tensor = self.gate(self.expand(functional.relu(self.reduce(squeezed))))
        return x * weights


class InvertedResidual(nn.Module):
    """Expand, depthwise, (squeeze-excite), project: the block of MobileNetV2, V3 and EfficientNet."""

    def __init__(self, inputs: int, outputs: int, stride: int, act: Activation, gate: nn.Module | None) -> None:
        super().__init__()
        hidden = inputs * 4
        self.layers = nn.Sequential(
            conv_bn(inputs, hidden, 1, act=act()),
            conv_bn(hidden, hidden, 3, stride, groups=hidden, act=act()),
            *([] if gate is None else [SqueezeExcite(hidden, gate)]),
            conv_bn(hidden, outputs, 1),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


def inverted_residuals(act: Activation, gate: nn.Module | None) -> nn.Sequential:
    """Five blocks between a strided stem and a classifier: ``(N, 1, 28, 28) -> (N, 10)``."""
    return nn.Sequential(
        conv_bn(1, 16, 3, 2, act=act()),
        InvertedResidual(16, 16, 1, act, gate),
        InvertedResidual(16, 24, 2, act, gate),
        InvertedResidual(24, 24, 1, act, gate),
        InvertedResidual(24, 32, 1, act, gate),
        InvertedResidual(32, 32, 1, act, gate),
        conv_bn(32, 96, 1, act=act()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


def mobilenet_v2() -> nn.Module:
    """ReLU6 (Sandler et al. 2018, https://arxiv.org/abs/1801.04381)."""
    return inverted_residuals(nn.ReLU6, None)


def mobilenet_v3() -> nn.Module:
    """Hardswish, and squeeze-excite with hardsigmoid (Howard et al. 2019, https://arxiv.org/abs/1905.02244)."""
    return inverted_residuals(nn.Hardswish, nn.Hardsigmoid())


def efficientnet() -> nn.Module:
    """SiLU, and squeeze-excite with sigmoid (Tan and Le 2019, https://arxiv.org/abs/1905.11946)."""
    return inverted_residuals(nn.SiLU, nn.Sigmoid())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3": mobilenet_v3,
    "efficientnet": efficientnet,
}
