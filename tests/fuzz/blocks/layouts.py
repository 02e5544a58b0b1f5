"""Moves: views with -1 and with constants, permutes, slices, rolls, and code that keeps channels last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.fuzz.blocks.kind import Compute, DoesNotFit, kind
from tests.fuzz.spec import Value


@kind(
    "image",
    gives="vector",
    form=("flatten", "view", "view_constant", "reshape_batch", "nhwc", "unbatched_size", "module"),
)
def flatten(x: Value, form: str) -> nn.Module:
    size = x.shape[0] * x.shape[1] * x.shape[2]
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "flatten": lambda y: y.flatten(1),
        "view": lambda y: y.view(y.size(0), -1),
        "view_constant": lambda y: y.reshape(-1, size),
        "reshape_batch": lambda y: torch.reshape(y, (y.shape[0], -1)),
        "nhwc": lambda y: y.permute(0, 2, 3, 1).flatten(1),
        "unbatched_size": lambda y: y.view(len(y), size),
    }
    if form == "module":
        return nn.Flatten()
    function = functions[form]
    return Compute(lambda _, y: function(y))


TO_TOKENS: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten_transpose": lambda x: x.flatten(2).transpose(1, 2),
    "view_permute": lambda x: x.view(x.shape[0], x.shape[1], -1).permute(0, 2, 1),
    "permute_reshape": lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1]),
    "rows": lambda x: x.mean(3).transpose(1, 2),
    "columns": lambda x: x.permute(0, 3, 1, 2).flatten(2),
    "batch_of_ones": lambda x: x.permute(0, 2, 3, 1).reshape(-1, x.shape[2] * x.shape[3], x.shape[1]),
    "movedim": lambda x: x.movedim(1, -1).flatten(1, 2),
    "swapaxes": lambda x: x.flatten(2).swapaxes(1, 2).contiguous(),
}


@kind("image", gives="tokens", form=tuple(TO_TOKENS))
def to_tokens(_x: Value, form: str) -> nn.Module:
    function = TO_TOKENS[form]
    return Compute(lambda _, y: function(y))


@kind("image", gives="tokens", size=(2, 4), form=("conv", "unfold", "windows"))
def patches(x: Value, size: int, form: str) -> nn.Module:
    c, h, w = x.shape
    if form == "conv":
        return Compute(lambda self, y: self.conv(y).flatten(2).mT, conv=nn.Conv2d(c, 8, size, size))
    if form == "unfold":
        return Compute(lambda _, y: F.unfold(y, size, stride=size).transpose(1, 2))
    if h % size or w % size:
        raise DoesNotFit

    def windows(self: Any, y: Tensor) -> Tensor:
        y = y.reshape(-1, c, h // size, size, w // size, size).permute(0, 2, 4, 3, 5, 1)
        return self.linear(y.reshape(-1, (h // size) * (w // size), size * size * c))

    return Compute(windows, linear=nn.Linear(size * size * c, 8))


@kind("tokens", gives="image", form=("transpose_view", "permute", "unflatten"))
def tokens_to_image(x: Value, form: str) -> nn.Module:
    tokens, channels = x.shape
    height = next((h for h in (4, 2, 3, 1) if tokens % h == 0), 1)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "transpose_view": lambda y: y.transpose(1, 2).reshape(y.shape[0], channels, height, -1),
        "permute": lambda y: y.view(-1, height, tokens // height, channels).permute(0, 3, 1, 2),
        "unflatten": lambda y: y.unflatten(1, (height, -1)).permute(0, 3, 1, 2).contiguous(),
    }
    function = functions[form]
    return Compute(lambda _, y: function(y))


@kind("vector", gives="image", form=("view", "unflatten", "expand", "outer"))
def vector_to_image(x: Value, form: str) -> nn.Module:
    c = x.channels
    if form in ("view", "unflatten") and c % 4:
        raise DoesNotFit
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "view": lambda y: y.view(-1, c // 4, 2, 2),
        "unflatten": lambda y: y.unflatten(1, (c // 4, 2, 2)),
        "expand": lambda y: y[:, :, None, None].expand(-1, -1, 2, 3),
        "outer": lambda y: (y.unsqueeze(2) * y.unsqueeze(1)).unsqueeze(1),
    }
    function = functions[form]
    return Compute(lambda _, y: function(y))


@kind("image", gives="signal", form=("flatten", "mean_height", "rows", "squeeze"))
def image_to_signal(_x: Value, form: str) -> nn.Module:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "flatten": lambda y: y.flatten(2),
        "mean_height": lambda y: y.mean(2),
        "rows": lambda y: y.reshape(y.shape[0], y.shape[1] * y.shape[2], -1),
        "squeeze": lambda y: F.adaptive_avg_pool2d(y, (1, None)).squeeze(2),
    }
    function = functions[form]
    return Compute(lambda _, y: function(y))


@kind("signal", gives="tokens", form=("transpose", "permute"))
def signal_to_tokens(_x: Value, form: str) -> nn.Module:
    return Compute(lambda _, y: y.transpose(1, 2) if form == "transpose" else y.permute(0, 2, 1).contiguous())


@kind("tokens", gives="signal", form=("transpose", "mT"))
def tokens_to_signal(_x: Value, form: str) -> nn.Module:
    return Compute(lambda _, y: y.transpose(1, 2) if form == "transpose" else y.mT)


@kind("image", gives="channels_last", form=("permute", "movedim"))
def to_channels_last(_x: Value, form: str) -> nn.Module:
    return Compute(lambda _, y: y.permute(0, 2, 3, 1) if form == "permute" else y.movedim(1, 3))


@kind("channels_last", gives="image", form=("permute", "contiguous"))
def to_channels_first(_x: Value, form: str) -> nn.Module:
    return Compute(lambda _, y: y.permute(0, 3, 1, 2) if form == "permute" else y.permute(0, 3, 1, 2).contiguous())


@kind("channels_last", gives="vector", form=("mean", "flatten"))
def pool_channels_last(_x: Value, form: str) -> nn.Module:
    return Compute(lambda _, y: y.mean((1, 2)) if form == "mean" else y.reshape(y.shape[0], -1))


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "flip": lambda x: x.flip(-1),
    "flip_two": lambda x: torch.flip(x, (2, 3)),
    "roll": lambda x: torch.roll(x, 1, -1),
    "roll_two": lambda x: x.roll((-1, 1), (2, 3)),
    "transpose": lambda x: x.transpose(2, 3),
    "crop": lambda x: x[:, :, 1:-1, 1:-1],
    "crop_one_side": lambda x: x[..., 1:, :],
    "stride": lambda x: x[:, :, ::2, ::2],
    "narrow": lambda x: x.narrow(2, 0, x.shape[2] - 1),
    "channels": lambda x: x[:, :2],
    "channels_from": lambda x: x[:, 1:],
    "last_channel": lambda x: x[:, -1:],
    "pad": lambda x: F.pad(x, (1, 1, 1, 1)),
    "pad_channels": lambda x: F.pad(x, (0, 0, 0, 0, 0, 2)),
    "pad_reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "pad_replicate": lambda x: F.pad(x, (0, 1, 0, 1), mode="replicate"),
    "pad_circular": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
    "pad_negative": lambda x: F.pad(x, (-1, 0, 0, -1)),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1),
    "tile": lambda x: torch.tile(x, (1, 1, 2, 1)),
    "expand_channels": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "select_stack": lambda x: torch.stack([x[:, 0], x[:, -1]], 1),
    "unbind_stack": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "index_select": lambda x: x.index_select(1, torch.tensor([0, x.shape[1] - 1])),
    "index_list": lambda x: x[:, [0, -1]],
    "gather": lambda x: x.gather(1, torch.zeros_like(x[:, :1]).long()),
    "unsqueeze_squeeze": lambda x: x.unsqueeze(1).squeeze(1),
    "chunk_swap": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "split_first": lambda x: x.split(1, 1)[0],
    "assign_slice": lambda x: _with_zero_slice(x),
    "permute_twice": lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
    "view_same": lambda x: x.view(x.shape[0], x.shape[1], x.shape[2], -1),
    "rot90": lambda x: torch.rot90(x, 1, (2, 3)),
    "meshgrid": lambda x: torch.cat((x, _coordinates(x)), 1),
    "tril": lambda x: x.tril(),
}


def _with_zero_slice(x: Tensor) -> Tensor:
    """A slice set in place, as in temporal shift modules."""
    y = x.clone()
    y[:, :1] = 0
    return y


def _coordinates(x: Tensor) -> Tensor:
    """CoordConv's column of positions."""
    row = torch.linspace(-1, 1, x.shape[3], dtype=x.dtype)
    return row.view(1, 1, 1, -1).expand(x.shape[0], 1, x.shape[2], -1)


@kind("image", gives="image", name=tuple(MOVES))
def move(_x: Value, name: str) -> nn.Module:
    function = MOVES[name]
    return Compute(lambda _, y: function(y))


@kind("tokens", gives="tokens", form=("drop_first", "every_second", "flip", "shift", "swap_heads", "repeat"))
def move_tokens(_x: Value, form: str) -> nn.Module:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "drop_first": lambda y: y[:, 1:],
        "every_second": lambda y: y[:, ::2],
        "flip": lambda y: y.flip(1),
        "shift": lambda y: F.pad(y, (0, 0, 1, -1)),
        "swap_heads": lambda y: y.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2),
        "repeat": lambda y: y.repeat(1, 2, 1),
    }
    function = functions[form]
    return Compute(lambda _, y: function(y))


@kind("pixels", gives="image", form=("divide", "normalize"))
def from_pixels(_x: Value, form: str) -> nn.Module:
    """A network that takes stored bytes."""
    return Compute(lambda _, y: y.float() / 255 if form == "divide" else (y.to(torch.float32) - 127.5) / 50)


@kind("half", gives="vector", form=("float", "to"))
def from_half(_x: Value, form: str) -> nn.Module:
    return Compute(lambda _, y: y.float() if form == "float" else y.to(torch.float32))


@kind("vector", "number", gives="vector", pair="any", form=("multiply", "add", "divide"))
def with_number(_x: Value, _t: Value, form: str) -> nn.Module:
    """One number per sample, such as a diffusion step."""
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "multiply": lambda y, t: y * t[:, None],
        "add": lambda y, t: y + t.unsqueeze(-1),
        "divide": lambda y, t: y / t.view(-1, 1),
    }
    function = functions[form]
    return Compute(lambda _, y, t: function(y, t))
