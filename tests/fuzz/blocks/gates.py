"""Gates: a value decides how much of another passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.fuzz.blocks.kind import Compute, DoesNotFit, kind
from tests.fuzz.spec import Value


@kind(
    "image", gives="image",
    form=("keepdim", "view", "expand_as", "unsqueeze", "indexed", "adaptive", "repeat", "eca"),
    gate=("sigmoid", "hardsigmoid", "tanh"),
)  # fmt: skip
def squeeze_excite(x: Value, form: str, gate: str) -> nn.Module:
    c, small = x.channels, max(x.channels // 2, 1)
    function = {"sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid, "tanh": torch.tanh}[gate]
    convs = nn.Sequential(nn.Conv2d(c, small, 1), nn.ReLU(), nn.Conv2d(small, c, 1))
    linears = nn.Sequential(nn.Linear(c, small), nn.ReLU(), nn.Linear(small, c))

    def forward(self: Any, y: Tensor) -> Tensor:
        match form:
            case "keepdim":
                return y * function(self.convs(y.mean((2, 3), keepdim=True)))
            case "adaptive":
                return function(self.convs(F.adaptive_avg_pool2d(y, 1))) * y
            case "eca":
                pooled = y.mean((2, 3)).unsqueeze(1)
                return y * function(self.line(pooled)).transpose(1, 2).unsqueeze(-1)
        n = y.shape[0]
        weight = function(self.linears(F.adaptive_avg_pool2d(y, 1).view(n, c)))
        match form:
            case "view":
                return y * weight.view(-1, c, 1, 1)
            case "expand_as":
                return y * weight.view(n, c, 1, 1).expand_as(y)
            case "unsqueeze":
                return y * weight.unsqueeze(2).unsqueeze(3)
            case "repeat":
                return y * weight.view(n, c, 1, 1).repeat(1, 1, y.shape[2], y.shape[3])
        return y * weight[:, :, None, None]

    return Compute(forward, convs=convs, linears=linears, line=nn.Conv1d(1, 1, 3, padding=1))


@kind("image", gives="image", form=("cbam", "map", "map_expand", "attention_gate", "one_minus"))
def spatial_gate(x: Value, form: str) -> nn.Module:
    def forward(self: Any, y: Tensor) -> Tensor:
        match form:
            case "cbam":
                both = torch.cat((y.mean(1, keepdim=True), y.amax(1, keepdim=True)), 1)
                return y * self.two(both).sigmoid()
            case "map_expand":
                return y * self.one(y).sigmoid().expand_as(y)
            case "attention_gate":
                return y * self.one(F.relu(self.same(y) + self.other(y))).sigmoid()
            case "one_minus":
                gate = self.one(y).sigmoid()
                return gate * y + (1 - gate) * self.same(y)
        return y * torch.sigmoid(self.one(y))

    c = x.channels
    return Compute(
        forward, two=nn.Conv2d(2, 1, 3, padding=1), one=nn.Conv2d(c, 1, 1), same=nn.Conv2d(c, c, 1),
        other=nn.Conv2d(c, c, 1),
    )  # fmt: skip


@kind("image signal tokens vector", form=("glu", "chunk", "swiglu", "tanh_sigmoid", "simple", "bilinear"))
def glu(x: Value, form: str) -> nn.Module:
    """Gated linear units, as a layer, by hand, and in the forms of WaveNet and of language models."""
    c = x.channels
    dim = -1 if x.layout in ("tokens", "vector") else 1

    def expand(o: int) -> nn.Module:
        if x.layout in ("tokens", "vector"):
            return nn.Linear(c, o)
        return nn.Conv2d(c, o, 1) if x.layout == "image" else nn.Conv1d(c, o, 3, padding=1)

    def forward(self: Any, y: Tensor) -> Tensor:
        match form:
            case "glu":
                return F.glu(self.wide(y), dim)
            case "swiglu":
                return self.last(F.silu(self.one(y)) * self.two(y))
            case "bilinear":
                return self.one(y) * self.two(y)
        a, b = self.wide(y).chunk(2, dim)
        match form:
            case "tanh_sigmoid":
                return torch.tanh(a) * torch.sigmoid(b)
            case "simple":
                return a * b
        return a * b.sigmoid()

    return Compute(forward, wide=expand(2 * c), one=expand(c), two=expand(c), last=expand(c))


@kind("image", gives="image", form=("selective_kernel", "split_attention", "highway"))
def mixture(x: Value, form: str) -> nn.Module:
    """Two paths weighed by a softmax over them, or by a gate and what it leaves."""
    c = x.channels
    if form == "split_attention" and c % 2:
        raise DoesNotFit

    def forward(self: Any, y: Tensor) -> Tensor:
        a, b = self.a(y), self.b(y)
        if form == "highway":
            gate = self.a(y).sigmoid()
            return gate * b + (1.0 - gate) * y
        if form == "split_attention":
            weights = self.linear((a + b).mean((2, 3))).view(-1, 2, c).softmax(1)
            return a * weights[:, 0, :, None, None] + b * weights[:, 1, :, None, None]
        stacked = torch.stack((a, b), 1)
        weights = self.linear((a + b).mean((2, 3))).view(-1, 2, c, 1, 1).softmax(1)
        return (stacked * weights).sum(1)

    conv_a, conv_b = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=2, dilation=2)
    return Compute(forward, a=conv_a, b=conv_b, linear=nn.Linear(c, 2 * c))


@kind("image", gives="image", form=("pointwise", "depthwise_sum", "rows"))
def einsum_image(x: Value, form: str) -> nn.Module:
    c, h, _ = x.shape
    weight, rows = nn.Parameter(torch.zeros(c, c)), nn.Parameter(torch.zeros(h, h))

    def forward(self: Any, y: Tensor) -> Tensor:
        match form:
            case "depthwise_sum":
                return torch.einsum("nchw,nc->nhw", y, y.mean((2, 3))).unsqueeze(1)
            case "rows":
                return torch.einsum("nchw,kh->nckw", y, self.rows)
        return torch.einsum("nchw,dc->ndhw", y, self.weight)

    return Compute(forward, weight=weight, rows=rows)
