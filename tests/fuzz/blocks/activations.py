"""Activations: as modules, functions and methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.fuzz.blocks.kind import Compute, kind
from tests.fuzz.spec import Value

ANY = "image signal tokens vector channels_last"


@dataclass(frozen=True)
class Activation:
    """A module per number of channels, and the function that computes the same, where there is one."""

    module: Callable[[int], nn.Module]
    function: Callable[[Tensor], Tensor]


def _plain(module: Callable[[], nn.Module], function: Callable[..., Any]) -> Activation:
    return Activation(lambda _: module(), function)


ACTIVATIONS = {
    "relu": _plain(nn.ReLU, F.relu),
    "none": _plain(nn.Identity, lambda x: x),
    "relu6": _plain(nn.ReLU6, F.relu6),
    "hardtanh": _plain(nn.Hardtanh, F.hardtanh),
    "clamp": _plain(lambda: nn.Hardtanh(-0.5, 2.0), lambda x: x.clamp(-0.5, 2.0)),
    "clamp_min": _plain(lambda: Compute(lambda _, x: x.clamp_min(0.1)), lambda x: x.clamp(min=-0.3)),
    "clamp_max": _plain(lambda: Compute(lambda _, x: x.clamp(max=1.0)), lambda x: torch.clamp_max(x, 0.5)),
    "leaky_relu": _plain(lambda: nn.LeakyReLU(0.1), F.leaky_relu),
    "sigmoid": _plain(nn.Sigmoid, torch.sigmoid),
    "tanh": _plain(nn.Tanh, torch.tanh),
    "silu": _plain(nn.SiLU, F.silu),
    "swish_by_hand": _plain(nn.SiLU, lambda x: x * x.sigmoid()),
    "hardswish": _plain(nn.Hardswish, F.hardswish),
    "hardswish_by_hand": _plain(nn.Hardswish, lambda x: x * F.relu6(x + 3) / 6),
    "hardsigmoid": _plain(nn.Hardsigmoid, F.hardsigmoid),
    "gelu": _plain(nn.GELU, F.gelu),
    "gelu_tanh": _plain(lambda: nn.GELU("tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "quick_gelu": _plain(nn.GELU, lambda x: x * torch.sigmoid(1.702 * x)),
    "elu": _plain(nn.ELU, F.elu),
    "selu": _plain(nn.SELU, F.selu),
    "celu": _plain(nn.CELU, F.celu),
    "mish": _plain(nn.Mish, F.mish),
    "softplus": _plain(nn.Softplus, F.softplus),
    "softsign": _plain(nn.Softsign, F.softsign),
    "logsigmoid": _plain(nn.LogSigmoid, F.logsigmoid),
    "tanhshrink": _plain(nn.Tanhshrink, F.tanhshrink),
    "softshrink": _plain(nn.Softshrink, F.softshrink),
    "hardshrink": _plain(nn.Hardshrink, F.hardshrink),
    "threshold": _plain(lambda: nn.Threshold(0.1, 0.0), lambda x: F.threshold(x, 0.1, 20.0)),
    "rrelu": _plain(nn.RReLU, F.rrelu),
    "prelu": Activation(nn.PReLU, F.relu),
    "prelu_one": _plain(nn.PReLU, F.relu),
    "dropout": _plain(lambda: nn.Dropout(0.5), lambda x: F.dropout(x, 0.5, training=False)),
}


@kind(ANY, name=tuple(ACTIVATIONS), form=("module", "function"))
def act(x: Value, name: str, form: str) -> nn.Module:
    if form == "module":
        prelu = name == "prelu"
        if prelu and x.layout in ("tokens", "channels_last"):
            return Compute(
                lambda self, y: self.act(y.movedim(-1, 1)).movedim(1, -1), act=ACTIVATIONS[name].module(x.channels)
            )
        return ACTIVATIONS[name].module(x.channels)
    function = ACTIVATIONS[name].function
    return Compute(lambda _, y: function(y))


@kind(ANY, dim=(-1, 1, "all_but_batch"), form=("function", "module", "log"))
def softmax(_x: Value, dim: int | str, form: str) -> nn.Module:
    if dim == "all_but_batch":
        return Compute(lambda _, y: y.flatten(1).softmax(1).view(y.shape))
    if form == "module":
        return nn.Softmax(dim=dim)
    return Compute(lambda _, y: F.log_softmax(y, dim) if form == "log" else torch.softmax(y, dim))
