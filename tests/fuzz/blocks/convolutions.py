"""Convolutions, plain, grouped, depthwise and transposed, with every form of padding and of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.fuzz.blocks.activations import ACTIVATIONS
from tests.fuzz.blocks.kind import Compute, DoesNotFit, kind
from tests.fuzz.spec import Value

PADDINGS = (
    "int", "none", "tuple", "same", "valid", "pad", "pad_asymmetric", "pad_one_side", "pad_ones", "zero_pad",
    "zero_pad_asymmetric", "tf_same", "reflect", "replicate", "circular", "reflection_pad", "replication_pad",
)  # fmt: skip
GROUPS = ("one", "two", "depthwise", "multiplier", "shuffled")
ACTS = ("relu", "none", "relu6", "silu", "hardswish", "leaky_relu", "gelu", "prelu", "hardtanh", "elu", "sigmoid")


def groups_of(channels: int, out: int, groups: str) -> tuple[int, int]:
    """Groups and output channels."""
    match groups:
        case "one":
            return 1, out
        case "two":
            return 2, out
        case "depthwise":
            return channels, channels
        case "multiplier":
            return channels, 2 * channels
    return 1, out


def padded(layer: Callable[..., nn.Module], dims: int, kernel: int, padding: str, **settings: Any) -> nn.Module:
    """A convolution behind a form of padding; ``layer`` is its class with the channels bound."""
    half = kernel // 2
    both = [half] * (2 * dims)
    inside: dict[str, int | str | tuple[int, ...]] = {
        "int": half, "none": 0, "tuple": (half, 0)[:dims], "same": "same", "valid": "valid",
    }  # fmt: skip
    if padding in inside:
        return layer(padding=inside[padding], **settings)
    if padding in ("reflect", "replicate", "circular"):
        return layer(padding=half, padding_mode=padding, **settings)
    module = layer(**settings)
    name = {"zero_pad": "ZeroPad", "reflection_pad": "ReflectionPad", "replication_pad": "ReplicationPad"}.get(padding)
    if name is not None:
        return nn.Sequential(getattr(nn, f"{name}{dims}d")(half), module)
    if padding == "zero_pad_asymmetric":
        return nn.Sequential(getattr(nn, f"ZeroPad{dims}d")([0, half] * dims), module)
    if padding == "tf_same":
        return Compute(lambda self, x: self.conv(_same_as_tensorflow(x, kernel, self.conv.stride)), conv=module)
    widths = {"pad": both, "pad_asymmetric": [0, max(half, 1)] * dims, "pad_one_side": [2, 0] + [0, 0] * (dims - 1)}
    value = 1.0 if padding == "pad_ones" else 0.0
    return Compute(lambda self, x: self.conv(F.pad(x, widths.get(padding, both), value=value)), conv=module)


def _same_as_tensorflow(x: Tensor, kernel: int, strides: tuple[int, ...]) -> Tensor:
    """The padding that ports from TensorFlow compute in ``forward``."""
    widths: list[int] = []
    for size, stride in zip(x.shape[2:], strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        widths = [total // 2, total - total // 2, *widths]
    return F.pad(x, widths)


@kind(
    "image", gives="image",
    out=(8, 4, 12, 1, 16), kernel=(3, 1, 5, 2), stride=(1, 2), dilation=(1, 2), groups=GROUPS[:4], padding=PADDINGS,
    bias=(True, False),
)  # fmt: skip
def conv2d(
    x: Value, out: int, kernel: int, stride: int, dilation: int, groups: str, padding: str, bias: bool
) -> nn.Module:
    parts, out = groups_of(x.channels, out, groups)

    def layer(**settings: Any) -> nn.Module:
        return nn.Conv2d(x.channels, out, kernel, groups=parts, bias=bias, **settings)

    return padded(layer, 2, kernel, padding, stride=stride, dilation=dilation)


@kind(
    "image", gives="image",
    out=(8, 4, 16), kernel=((3), (1), (5)), stride=(1, 2), groups=GROUPS[:4],
    padding=("int", "tf_same", "zero_pad_asymmetric", "pad", "same"), act=ACTS,
    style=("modules", "functional", "in_place", "act_first"),
)  # fmt: skip
def conv_bn_act(
    x: Value, out: int, kernel: int, stride: int, groups: str, padding: str, act: str, style: str
) -> nn.Module:
    parts, out = groups_of(x.channels, out, groups)

    def layer(**settings: Any) -> nn.Module:
        return nn.Conv2d(x.channels, out, kernel, groups=parts, bias=False, **settings)

    conv = padded(layer, 2, kernel, padding, stride=stride)
    if style == "act_first":
        return nn.Sequential(nn.BatchNorm2d(x.channels), ACTIVATIONS[act].module(x.channels), conv)
    norm = nn.BatchNorm2d(out)
    if style == "functional" and act in ("relu", "relu6", "silu", "hardswish", "leaky_relu", "gelu", "sigmoid"):
        function = ACTIVATIONS[act].function
        return Compute(lambda self, y: function(self.norm(self.conv(y))), conv=conv, norm=norm)
    activation = ACTIVATIONS[act].module(out)
    if style == "in_place" and hasattr(activation, "inplace"):
        activation.inplace = True
    return nn.Sequential(conv, norm, activation)


@kind(
    "image", gives="image",
    out=(4, 8), kernel=(2, 3, 4), stride=(2, 1, 3), padding=(0, 1), output_padding=(0, 1), dilation=(1, 2),
    groups=GROUPS[:4], bias=(True, False), norm=(False, True), twice=(False, True),
)  # fmt: skip
def conv_transpose2d(
    x: Value, out: int, kernel: int, stride: int, padding: int, output_padding: int, dilation: int, groups: str,
    bias: bool, norm: bool, twice: bool,
) -> nn.Module:  # fmt: skip
    parts, out = groups_of(x.channels, out, groups)
    conv = nn.ConvTranspose2d(
        x.channels, out, kernel, stride, padding, output_padding, groups=parts, bias=bias, dilation=dilation
    )
    if twice:
        again = nn.ConvTranspose2d(out, x.channels, kernel, stride, padding, output_padding, dilation=dilation)
        return nn.Sequential(conv, nn.ReLU(), again)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU()) if norm else conv


@kind(
    "signal", gives="signal",
    out=(8, 4, 16), kernel=(3, 1, 5), stride=(1, 2), dilation=(1, 2, 4), groups=GROUPS[:4],
    padding=(*(p for p in PADDINGS if p not in ("tuple", "zero_pad_asymmetric")), "causal"), norm=(False, True),
)  # fmt: skip
def conv1d(
    x: Value, out: int, kernel: int, stride: int, dilation: int, groups: str, padding: str, norm: bool
) -> nn.Module:
    parts, out = groups_of(x.channels, out, groups)

    def layer(**settings: Any) -> nn.Module:
        return nn.Conv1d(x.channels, out, kernel, groups=parts, **settings)

    if padding == "causal":
        past = (kernel - 1) * dilation
        inner = layer(stride=stride, dilation=dilation)
        conv: nn.Module = Compute(lambda self, y: self.conv(F.pad(y, (past, 0))), conv=inner)
    else:
        conv = padded(layer, 1, kernel, padding, stride=stride, dilation=dilation)
    return nn.Sequential(conv, nn.BatchNorm1d(out), nn.ReLU()) if norm else conv


@kind("signal", gives="signal", out=(4, 8), kernel=(2, 4, 3), stride=(2, 1), padding=(0, 1), groups=GROUPS[:3])
def conv_transpose1d(x: Value, out: int, kernel: int, stride: int, padding: int, groups: str) -> nn.Module:
    parts, out = groups_of(x.channels, out, groups)
    return nn.ConvTranspose1d(x.channels, out, kernel, stride, padding, groups=parts)


@kind("volume", gives="volume", out=(4, 6), kernel=(3, 1), stride=(1, 2), norm=(False, True))
def conv3d(x: Value, out: int, kernel: int, stride: int, norm: bool) -> nn.Module:
    conv = nn.Conv3d(x.channels, out, kernel, stride, kernel // 2)
    return nn.Sequential(conv, nn.BatchNorm3d(out), nn.ReLU()) if norm else conv


@kind(
    "image",
    gives="image",
    out=(8, 4),
    form=("weight_norm", "spectral_norm", "standardized", "scaled", "old_weight_norm"),
)
def computed_weight(x: Value, out: int, form: str) -> nn.Module:
    """A convolution whose weight is computed from constants."""
    conv = nn.Conv2d(x.channels, out, 3, padding=1)
    if form == "weight_norm":
        return parametrizations.weight_norm(conv)
    if form == "spectral_norm":
        return parametrizations.spectral_norm(conv)
    if form == "old_weight_norm":
        return nn.utils.weight_norm(conv)

    def standardized(self: Any, y: Tensor) -> Tensor:
        weight = self.conv.weight
        mean, std = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(y, (weight - mean) / (std + 1e-5), self.conv.bias, padding=1)

    def scaled(self: Any, y: Tensor) -> Tensor:
        return F.conv2d(y, self.conv.weight * 0.5, self.conv.bias, padding=1)

    return Compute(standardized if form == "standardized" else scaled, conv=conv)


@kind("image", gives="image", times=(2, 3), between=("relu", "none", "gelu"))
def shared_conv(x: Value, times: int, between: str) -> nn.Module:
    """One convolution that runs several times in a row, as in recurrent refinement."""
    activation = ACTIVATIONS[between].module(x.channels)

    def repeat(self: Any, y: Tensor) -> Tensor:
        for _ in range(times):
            y = self.act(self.conv(y))
        return y

    return Compute(repeat, conv=nn.Conv2d(x.channels, x.channels, 3, padding=1), act=activation)


@kind("image", "image", gives="image", pair="equal", out=(4, 8), join=("sub", "cat", "mul"))
def siamese(x: Value, _y: Value, out: int, join: str) -> nn.Module:
    """One branch that runs on two values."""
    branch = nn.Sequential(nn.Conv2d(x.channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())

    def both(self: Any, y: Tensor, z: Tensor) -> Tensor:
        one, two = self.branch(y), self.branch(z)
        return torch.cat((one, two), 1) if join == "cat" else one - two if join == "sub" else one * two

    return Compute(both, branch=branch)


@kind("image", gives="image", out=(4, 8), levels=("same", "pooled"), groups=("one", "depthwise"))
def norm_per_level(x: Value, out: int, levels: str, groups: str) -> nn.Module:
    """A shared convolution with one batch norm per level, as detectors' heads have."""
    parts, out = groups_of(x.channels, out, groups)
    if levels == "pooled" and (x.shape[1] % 2 or x.shape[2] % 2):
        raise DoesNotFit

    def both(self: Any, y: Tensor) -> Tensor:
        other = F.max_pool2d(y, 2) if levels == "pooled" else y
        low = self.bn2(self.conv(other)).relu()
        if levels == "pooled":
            low = F.interpolate(low, scale_factor=2)
        return self.bn1(self.conv(y)).relu() + low

    conv = nn.Conv2d(x.channels, out, 3, padding=1, groups=parts)
    return Compute(both, conv=conv, bn1=nn.BatchNorm2d(out), bn2=nn.BatchNorm2d(out))


@kind("image", gives="image", tied=("bn_twice", "bn_and_raw", "weight_of_two"))
def shared_norm(x: Value, tied: str) -> nn.Module:
    """A batch norm that runs twice, a convolution read with and without its norm, one weight in two layers."""
    first, second = (nn.Conv2d(x.channels, x.channels, 3, padding=1) for _ in range(2))
    if tied == "weight_of_two":
        second.weight = first.weight

    def forward(self: Any, y: Tensor) -> Tensor:
        if tied == "bn_twice":
            return self.bn(self.second(self.bn(self.first(y)).relu()))
        if tied == "bn_and_raw":
            raw = self.first(y)
            return self.bn(raw).relu() + raw
        return self.second(self.first(y).relu())

    return Compute(forward, first=first, second=second, bn=nn.BatchNorm2d(x.channels))


@kind("image", gives="image", reduce=("relu6", "silu", "hardswish"), stride=(1, 2), expansion=(2, 3))
def inverted_residual(x: Value, reduce: str, stride: int, expansion: int) -> nn.Module:
    hidden = x.channels * expansion
    activation = ACTIVATIONS[reduce].module
    body = nn.Sequential(
        nn.Conv2d(x.channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), activation(hidden),
        nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), activation(hidden),
        nn.Conv2d(hidden, x.channels, 1, bias=False), nn.BatchNorm2d(x.channels),
    )  # fmt: skip
    return Compute(lambda self, y: y + self.body(y) if stride == 1 else self.body(y), body=body)


@kind("image", gives="image", form=("beyond_float16", "tiny", "channels_apart"))
def wide_range(x: Value, form: str) -> nn.Module:
    """Values between two convolutions that few number types hold; the second one takes them back."""
    c = x.channels
    factor = {"beyond_float16": 3e5, "tiny": 1e-7}.get(form)
    by = torch.logspace(-1.5, 1.5, c).view(1, -1, 1, 1) if factor is None else torch.full((1, 1, 1, 1), factor)

    def forward(self: Any, y: Tensor) -> Tensor:
        y = F.relu(F.conv2d(y, self.one.weight * self.by.view(-1, 1, 1, 1), padding=1))
        return F.conv2d(y, self.two.weight / self.by, self.two.bias)

    return Compute(forward, one=nn.Conv2d(c, c, 3, padding=1, bias=False), two=nn.Conv2d(c, c, 1), by=by)
