"""Two values, or a value and what is made of it, become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.fuzz.blocks.kind import Compute, DoesNotFit, kind
from tests.fuzz.spec import Value

ANY = "image signal tokens vector channels_last"

ELEMENTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, y: x + y,
    "add_relu": lambda x, y: F.relu(x + y),
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "mul_sigmoid": lambda x, y: x * y.sigmoid(),
    "div": lambda x, y: x / (1 + y.abs()),
    "maximum": torch.maximum,
    "minimum": lambda x, y: torch.min(x, y),
    "add_in_place": lambda x, y: x.clone().add_(y),
    "weighted": lambda x, y: 0.3 * x + 0.7 * y,
    "add_alpha": lambda x, y: torch.add(x, y, alpha=2),
    "lerp": lambda x, y: torch.lerp(x, y, 0.25),
    "where": lambda x, y: torch.where(x > y, x, 0.5 * y),
    "mean_of_stack": lambda x, y: torch.stack((x, y)).mean(0),
    "max_of_stack": lambda x, y: torch.stack((x, y), 1).max(1).values,
    "sum_list": lambda x, y: sum([x, y, x]),
    "squared_difference": lambda x, y: (x - y) ** 2,
    "addcmul": lambda x, y: torch.addcmul(x, x, y, value=0.5),
    "unlike_add": lambda x, y: x + 50 * y,
}


@kind(ANY, ANY, name=tuple(ELEMENTWISE))
def join(_x: Value, _y: Value, name: str) -> nn.Module:
    function = ELEMENTWISE[name]
    return Compute(lambda _, a, b: function(a, b))


@kind(
    ANY,
    ANY,
    pair="joinable",
    ranges=("alike", "100 to 1", "1000 to 1", "sigmoid and 50"),
    form=("cat", "concat_negative_dim", "three"),
)
def concatenate(x: Value, _y: Value, ranges: str, form: str) -> nn.Module:
    """Concatenation over the channels, of like and of unlike ranges (boxes and scores)."""
    dim = -1 if x.layout in ("tokens", "channels_last", "vector") else 1
    if form == "concat_negative_dim":
        dim -= 0 if dim == -1 else len(x.shape) + 1

    def forward(_: Any, a: Tensor, b: Tensor) -> Tensor:
        if ranges == "sigmoid and 50":
            a, b = a.sigmoid(), b * 50
        elif ranges != "alike":
            a = a * float(ranges.split()[0])
        return torch.cat((a, b, a) if form == "three" else (a, b), dim)

    return Compute(forward)


@kind("image", "vector", gives="image", pair="any", form=("add", "scale", "film", "concatenate"))
def condition(x: Value, y: Value, form: str) -> nn.Module:
    """A vector meets a feature map: time embeddings, FiLM."""
    linear = nn.Linear(y.channels, 2 * x.channels if form == "film" else x.channels)

    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        code = self.linear(b)
        if form == "film":
            gamma, beta = code[:, :, None, None].chunk(2, 1)
            return a * (1 + gamma) + beta
        if form == "concatenate":
            return torch.cat((a, code[:, :, None, None].expand(-1, -1, a.shape[2], a.shape[3])), 1)
        code = code.view(a.shape[0], -1, 1, 1)
        return a + code if form == "add" else a * code

    return Compute(forward, linear=linear)


@kind(
    "image",
    gives="image",
    form=("plain", "project", "dense", "pre", "scaled", "two_levels", "in_place"),
    act=("relu", "silu", "none"),
)
def residual(x: Value, form: str, act: str) -> nn.Module:
    activation = {"relu": nn.ReLU(), "silu": nn.SiLU(), "none": nn.Identity()}[act]
    c = x.channels
    body = nn.Sequential(nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), activation)

    def forward(self: Any, y: Tensor) -> Tensor:
        match form:
            case "project":
                return self.act(self.shortcut(y) + self.body(y))
            case "dense":
                return torch.cat((y, self.body(y)), 1)
            case "pre":
                return y + self.conv(self.act(self.norm(y)))
            case "scaled":
                return y + self.gain * self.body(y)
            case "two_levels":
                once = y + self.body(y)
                return once + self.conv(once) + y
            case "in_place":
                z = self.body(y)
                z += y
                return z
        return self.act(y + self.body(y))

    return Compute(
        forward,
        body=body,
        act=activation,
        norm=nn.BatchNorm2d(c),
        conv=nn.Conv2d(c, c, 3, padding=1),
        shortcut=nn.Sequential(nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c)),
        gain=nn.Parameter(torch.ones(c, 1, 1)),
    )


@kind(
    "image",
    gives="image",
    form=("c2f", "csp", "split_sizes", "ghost", "elan", "inception", "aspp", "slices", "shuffle_unit"),
)
def branches(x: Value, form: str) -> nn.Module:
    """Blocks that part the channels or the paths, and join them again."""
    c, half = x.channels, x.channels // 2
    if x.channels % 2:
        raise DoesNotFit

    def conv(i: int, o: int, k: int = 3, **settings: Any) -> nn.Module:
        padding = settings.pop("padding", k // 2)
        return nn.Sequential(nn.Conv2d(i, o, k, padding=padding, **settings), nn.ReLU())

    def forward(self: Any, y: Tensor) -> Tensor:
        match form:
            case "c2f":
                parts = list(self.one(y).chunk(2, 1))
                parts.append(self.small(parts[-1]))
                return self.last(torch.cat(parts, 1))
            case "csp":
                a, b = self.one(y).chunk(2, 1)
                return torch.cat((self.small(a), b), 1)
            case "split_sizes":
                a, b = torch.split(self.one(y), [half, c - half], 1)
                return torch.cat((b, self.small(a)), 1)
            case "ghost":
                first = self.small_in(y)
                return torch.cat((first, self.depthwise(first)), 1)
            case "elan":
                a, b = self.small_in(y), self.other_in(y)
                return self.last(torch.cat((a, b, self.small(b)), 1))
            case "inception":
                pooled = F.avg_pool2d(y, 3, 1, 1)
                return torch.cat((self.small_in(y), self.one(y), self.other_in(pooled)), 1)
            case "aspp":
                glob = self.other_in(y.mean((2, 3), keepdim=True)).expand(-1, -1, *y.shape[2:])
                return torch.cat((self.small_in(y), self.dilated(y), glob), 1)
            case "slices":
                return torch.cat((self.small(y[:, :half]), y[:, half:]), 1)
        a, b = y.chunk(2, dim=1)
        return F.channel_shuffle(torch.cat((a, self.small(b)), 1), 2)

    return Compute(
        forward,
        one=conv(c, c, 1),
        small=conv(half, half),
        small_in=conv(c, half, 1),
        other_in=conv(c, half, 1),
        depthwise=conv(half, half, groups=half),
        dilated=conv(c, half, 3, dilation=2, padding=2),
        last=conv(half * 3, c, 1),
    )
