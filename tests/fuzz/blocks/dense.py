"""Linear layers, embeddings, products of tensors."""

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


@kind(
    "vector tokens channels_last",
    out=(8, 5, 12, 1),
    bias=(True, False),
    form=("module", "functional", "matmul", "transposed", "addmm"),
    act=("none", "relu", "gelu", "prelu", "tanh"),
)
def linear(x: Value, out: int, bias: bool, form: str, act: str) -> nn.Module:
    layer = nn.Linear(x.channels, out, bias=bias)
    activation = ACTIVATIONS[act].module(out if x.layout == "vector" else 1)
    if form == "module":
        return nn.Sequential(layer, activation)

    def forward(self: Any, y: Tensor) -> Tensor:
        weight, shift = self.layer.weight, self.layer.bias
        if form == "functional":
            return self.act(F.linear(y, weight, shift))
        if form == "addmm" and shift is not None and y.ndim == 2:
            return self.act(torch.addmm(shift, y, weight.t()))
        z = y @ weight.T if form == "matmul" else torch.matmul(y, weight.transpose(0, 1))
        return self.act(z if shift is None else z + shift)

    return Compute(forward, layer=layer, act=activation)


@kind(
    "vector tokens",
    hidden=(16, 24),
    act=("relu", "gelu", "silu", "hardswish"),
    residual=(False, True),
    form=("plain", "weight_norm", "spectral_norm", "dropout", "shared", "tied"),
)
def mlp(x: Value, hidden: int, act: str, residual: bool, form: str) -> nn.Module:
    c = x.channels
    one, two = nn.Linear(c, hidden), nn.Linear(hidden, c)
    if form == "weight_norm":
        one, two = parametrizations.weight_norm(one), parametrizations.weight_norm(two)
    if form == "spectral_norm":
        one = parametrizations.spectral_norm(one)
    activation = ACTIVATIONS[act].module(hidden)

    def forward(self: Any, y: Tensor) -> Tensor:
        z = self.drop(self.act(self.one(y)))
        z = F.linear(z, self.one.weight.t()) if form == "tied" else self.two(z)
        if form == "shared":
            z = self.two(self.act(self.one(z)))
        return y + z if residual else z

    drop = nn.Dropout(0.1) if form == "dropout" else nn.Identity()
    return Compute(forward, one=one, two=two, act=activation, drop=drop)


@kind("tokens", form=("linear", "conv"))
def mix_tokens(x: Value, form: str) -> nn.Module:
    """MLP-Mixer's step over the tokens."""
    if form == "conv":
        conv = nn.Conv1d(x.channels, x.channels, 3, padding=1)
        return Compute(lambda self, y: y + self.conv(y.transpose(1, 2)).transpose(1, 2), conv=conv)
    mix = nn.Linear(x.shape[0], x.shape[0])
    return Compute(lambda self, y: y + self.mix(y.mT).mT, mix=mix)


@kind(
    "ids",
    gives="tokens",
    width=(8, 12),
    form=("plain", "padding", "scaled", "position", "two_tables", "functional", "norm"),
)
def embedding(x: Value, width: int, form: str) -> nn.Module:
    table = nn.Embedding(24, width, padding_idx=0 if form == "padding" else None)

    def forward(self: Any, ids: Tensor) -> Tensor:
        match form:
            case "scaled":
                return self.table(ids) * width**0.5
            case "position":
                return self.table(ids) + self.positions(torch.arange(ids.shape[1]))
            case "two_tables":
                return self.table(ids) + self.types(torch.zeros_like(ids))
            case "functional":
                return F.embedding(ids, self.table.weight)
            case "norm":
                return self.norm(self.table(ids))
        return self.table(ids)

    positions, types = nn.Embedding(x.shape[0], width), nn.Embedding(2, width)
    return Compute(forward, table=table, positions=positions, types=types, norm=nn.LayerNorm(width))


@kind("ids", gives="mask", form=("not_zero", "greater"))
def mask_of_ids(_x: Value, form: str) -> nn.Module:
    return Compute(lambda _, ids: ids != 0 if form == "not_zero" else ids > 2)


@kind("tokens", "mask", gives="tokens", pair="any", form=("masked_fill", "multiply", "where"))
def mask_tokens(_x: Value, _m: Value, form: str) -> nn.Module:
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "masked_fill": lambda y, m: y.masked_fill(~m.unsqueeze(-1), 0.0),
        "multiply": lambda y, m: y * m[..., None],
        "where": lambda y, m: torch.where(m[:, :, None], y, torch.zeros_like(y)),
    }
    function = functions[form]
    return Compute(lambda _, y, m: function(y, m))


@kind("vector", "vector", gives="vector", pair="any", form=("bilinear", "concatenate", "dot", "cosine"))
def two_vectors(x: Value, y: Value, form: str) -> nn.Module:
    if form in ("dot", "cosine") and x.shape != y.shape:
        raise DoesNotFit

    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        match form:
            case "bilinear":
                return self.bilinear(a, b)
            case "concatenate":
                return self.linear(torch.cat([a, b], dim=1))
            case "cosine":
                return F.cosine_similarity(a, b).unsqueeze(1)
        return (a * b).sum(1, keepdim=True)

    bilinear, layer = nn.Bilinear(x.channels, y.channels, 4), nn.Linear(x.channels + y.channels, 6)
    return Compute(forward, bilinear=bilinear, linear=layer)


@kind("tokens", gives="tokens", form=("linear", "transposed", "gram", "elementwise", "matmul_self"))
def einsum(x: Value, form: str) -> nn.Module:
    c = x.channels
    weight, row = nn.Parameter(torch.zeros(c, c)), nn.Parameter(torch.ones(c))

    def forward(self: Any, y: Tensor) -> Tensor:
        match form:
            case "gram":
                return torch.einsum("nsc,ntc->nst", y, y) / c
            case "matmul_self":
                return y @ y.transpose(1, 2) / c
            case "elementwise":
                return torch.einsum("ntc,c->ntc", y, self.row)
            case "transposed":
                return torch.einsum("ntc,dc->ntd", y, self.weight)
        return torch.einsum("ntc,cd->ntd", y, self.weight)

    return Compute(forward, weight=weight, row=row)
