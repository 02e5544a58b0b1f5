"""Layers of Keras as modules of torch. Images are ``(N, C, H, W)`` here and ``(N, H, W, C)`` there; all else is alike.

Each builder takes a layer's configuration and its arrays, numbered as Keras stores them, and returns a module.
What a builder does not know it refuses: nothing is computed approximately.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.arrays import Array

Config = dict[str, Any]
Arrays = dict[str, Array]


class UnknownLayerError(Exception):
    """A layer, or a setting of it, that has no module here."""


class Function(nn.Module):
    """A function without weights as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *values: Any) -> Tensor:
        return self.function(*values)


class SamePadding(nn.Module):
    """Zeros around an image or a sequence, as many as Keras' ``padding="same"`` adds at this size."""

    def __init__(self, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> None:
        super().__init__()
        self.kernel, self.stride, self.dilation = tuple(kernel), tuple(stride), tuple(dilation)

    def forward(self, x: Tensor) -> Tensor:
        sides = sides_of(x.shape[2:], self.kernel, self.stride, self.dilation)
        amounts = [amount for pair in reversed(sides) for amount in pair]
        return functional.pad(x, amounts) if any(amounts) else x


class Cropped(nn.Module):
    """A transposed convolution of which the last row and column of ``extra`` are cut off."""

    def __init__(self, layer: nn.Module, extra: Sequence[int]) -> None:
        super().__init__()
        self.layer, self.extra = layer, tuple(extra)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y[:, :, : y.shape[2] - self.extra[0], : y.shape[3] - self.extra[1]]


class LastAxis(nn.Module):
    """A layer for ``(N, C, …)`` on values ``(N, …, C)``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.movedim(-1, 1)).movedim(1, -1)  # type: ignore[no-any-return]


class Images(nn.Module):
    """A layer of the last axis, such as a dense one, on images: their channels are last for it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return to_images(self.layer(from_images(x)))


class Recurrent(nn.Module):
    """An LSTM or GRU: all steps, or the last one's."""

    def __init__(self, layer: nn.LSTM | nn.GRU, *, sequences: bool) -> None:
        super().__init__()
        self.layer, self.sequences = layer, sequences

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        steps, last = self.layer(x)
        if self.sequences:
            return steps  # type: ignore[no-any-return]
        hidden = last[0] if isinstance(last, tuple) else last
        return torch.cat(list(hidden), dim=-1)


def from_images(x: Tensor) -> Tensor:
    """Channels last, where this is an image."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def to_images(x: Tensor) -> Tensor:
    """Channels first, where this is an image."""
    return x.permute(0, 3, 1, 2) if x.ndim == 4 else x


def axis_of(axis: int, rank: int) -> int:
    """The axis here of an axis of Keras."""
    axis %= rank
    return {0: 0, 1: 2, 2: 3, 3: 1}[axis] if rank == 4 else axis


def tensor(array: Array) -> Tensor:
    """An array in float32."""
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


def filled(layer: Any, **weights: Array | None) -> Any:
    """The layer with these weights."""
    for name, array in weights.items():
        if array is not None:
            current = getattr(layer, name)
            if tuple(current.shape) != tuple(array.shape):
                raise UnknownLayerError(f"whose {name} has the shape {list(array.shape)}, not {list(current.shape)}")
            current.data = tensor(array)
    return layer


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "hard_sigmoid": nn.Hardsigmoid,
    "hard_silu": nn.Hardswish,
    "hard_swish": nn.Hardswish,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "exponential": lambda: Function(torch.exp),
    "softmax": lambda: Function(_softmax),
    "log_softmax": lambda: Function(lambda x: torch.log_softmax(x, 1 if x.ndim == 4 else -1)),
}


def _softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, 1 if x.ndim == 4 else -1)


def activated(layer: nn.Module, config: Config) -> nn.Module:
    """The layer and its activation."""
    name = config.get("activation") or "linear"
    if isinstance(name, dict):
        name = name.get("config") if isinstance(name.get("config"), str) else name.get("class_name")
    if name == "linear":
        return layer
    if name not in ACTIVATIONS:
        raise UnknownLayerError(f"with the activation {str(name)[:60]!r}")
    return nn.Sequential(layer, ACTIVATIONS[name]())


def require(config: Config, **settings: Any) -> None:
    """Refuse settings that are not these."""
    for key, value in settings.items():
        if config.get(key, value) != value:
            raise UnknownLayerError(f"with {key}: {str(config[key])[:60]}")


def _padded(config: Config, kernel: Sequence[int], layer: nn.Module) -> nn.Module:
    """The convolution with its padding, which is zero in the layer itself."""
    padding, stride = config["padding"], config["strides"]
    dilation = config.get("dilation_rate", [1] * len(kernel))
    if padding == "valid":
        return layer
    if padding != "same":
        raise UnknownLayerError(f"with padding: {str(padding)[:60]}")
    total = [rate * (size - 1) for rate, size in zip(dilation, kernel, strict=True)]
    if all(step == 1 for step in stride) and all(size % 2 == 0 for size in total):
        layer.padding = tuple(size // 2 for size in total)  # type: ignore[assignment]
        return layer
    return nn.Sequential(SamePadding(kernel, stride, dilation), layer)


def convolution(config: Config, arrays: Arrays) -> nn.Module:
    """Conv1D and Conv2D; a kernel is ``(H, W, in, out)`` there."""
    require(config, data_format="channels_last")
    kernel = arrays["0"]
    spatial = kernel.ndim - 2
    kind: Any = {1: nn.Conv1d, 2: nn.Conv2d}[spatial]
    groups = config.get("groups", 1)
    layer = kind(
        kernel.shape[-2] * groups,
        kernel.shape[-1],
        kernel.shape[:spatial],
        config["strides"],
        dilation=config["dilation_rate"],
        groups=groups,
        bias=bool(config["use_bias"]),
    )
    filled(layer, weight=np.moveaxis(kernel, (-1, -2), (0, 1)), bias=arrays.get("1"))
    padded = _padded(config, kernel.shape[:spatial], layer)
    return activated(padded if spatial == 2 else LastAxis(padded), config)


def _depthwise(config: Config, kernel: Array, bias: Array | None) -> nn.Module:
    height, width, channels, multiplier = kernel.shape
    layer = nn.Conv2d(
        channels,
        channels * multiplier,
        (height, width),
        tuple(config["strides"]),
        dilation=tuple(config["dilation_rate"]),
        groups=channels,
        bias=bias is not None,
    )
    filled(layer, weight=kernel.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width), bias=bias)
    return _padded(config, (height, width), layer)


def depthwise(config: Config, arrays: Arrays) -> nn.Module:
    """DepthwiseConv2D."""
    require(config, data_format="channels_last")
    return activated(_depthwise(config, arrays["0"], arrays.get("1")), config)


def separable(config: Config, arrays: Arrays) -> nn.Module:
    """SeparableConv2D: a depthwise convolution and one of 1x1."""
    require(config, data_format="channels_last")
    point = arrays["1"]
    layer = nn.Conv2d(point.shape[2], point.shape[3], 1, bias=bool(config["use_bias"]))
    filled(layer, weight=point.transpose(3, 2, 0, 1), bias=arrays.get("2"))
    return activated(nn.Sequential(_depthwise(config, arrays["0"], None), layer), config)


def transposed(config: Config, arrays: Arrays) -> nn.Module:
    """Conv2DTranspose; a kernel is ``(H, W, out, in)`` there."""
    require(config, data_format="channels_last", dilation_rate=[1, 1], output_padding=None)
    kernel, stride = arrays["0"], config["strides"]
    size = kernel.shape[:2]
    beyond = [max(step - length, 0) for step, length in zip(stride, size, strict=True)]
    cut = [
        max(length - step, 0) if config["padding"] == "same" else 0 for step, length in zip(stride, size, strict=True)
    ]
    layer = nn.ConvTranspose2d(
        kernel.shape[3],
        kernel.shape[2],
        tuple(size),
        tuple(stride),
        padding=(cut[0] // 2, cut[1] // 2),
        output_padding=tuple(beyond),
        bias=bool(config["use_bias"]),
    )
    filled(layer, weight=kernel.transpose(3, 2, 0, 1), bias=arrays.get("1"))
    odd = [total % 2 for total in cut]
    return activated(Cropped(layer, odd) if any(odd) else layer, config)


def dense(config: Config, arrays: Arrays) -> nn.Module:
    """Dense; a kernel is ``(in, out)`` there."""
    kernel = arrays["0"]
    layer = nn.Linear(kernel.shape[0], kernel.shape[1], bias=bool(config["use_bias"]))
    filled(layer, weight=kernel.T, bias=arrays.get("1"))
    return activated(Images(layer) if _rank(config) == 4 else layer, config)


def _rank(config: Config) -> int:
    """The number of axes of what the layer was built for."""
    shape = config.get("build_shape")
    return len(shape) if isinstance(shape, list) else 0


def batch_norm(config: Config, arrays: Arrays) -> nn.Module:
    """BatchNormalization of the last axis there; scale and centre may be missing."""
    rank = _rank(config)
    axis = config["axis"][0] if isinstance(config["axis"], list) else config["axis"]
    if rank not in (2, 3, 4) or axis % rank != rank - 1:
        raise UnknownLayerError(f"of axis {axis} and {rank} axes")
    found = iter(arrays[str(index)] for index in range(len(arrays)))
    gamma = next(found) if config["scale"] else None
    beta = next(found) if config["center"] else None
    mean, variance = next(found), next(found)
    layer = (nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d)(len(mean), eps=config["epsilon"])
    filled(layer, weight=gamma, bias=beta, running_mean=mean, running_var=variance)
    return LastAxis(layer) if rank == 3 else layer


def layer_norm(config: Config, arrays: Arrays) -> nn.Module:
    """LayerNormalization of the last axis there."""
    require(config, rms_scaling=False, scale=True, center=True)
    axis = config["axis"][0] if isinstance(config["axis"], list) else config["axis"]
    if axis not in (-1, _rank(config) - 1):
        raise UnknownLayerError(f"of axis {axis}")
    layer = filled(nn.LayerNorm(len(arrays["0"]), eps=config["epsilon"]), weight=arrays["0"], bias=arrays["1"])
    return Images(layer) if _rank(config) == 4 else layer


def normalization(config: Config, arrays: Arrays) -> nn.Module:
    """Normalization: ``(x - mean) / sqrt(variance)`` of each channel, with constants."""
    require(config, invert=False)
    axis = config["axis"] if isinstance(config["axis"], list) else [config["axis"]]
    if axis not in ([-1], [_rank(config) - 1]):
        raise UnknownLayerError(f"of axis {axis}")
    mean, variance = (arrays["0"], arrays["1"]) if "1" in arrays else (config["mean"], config["variance"])
    mean, deviation = np.ravel(mean), np.maximum(np.sqrt(np.ravel(variance)), 1e-7)
    return Scaled(1 / deviation, -mean / deviation)


def rescaling(config: Config, _: Arrays) -> nn.Module:
    """Rescaling, by one number or one for each channel."""
    scale, offset = np.broadcast_arrays(np.ravel(config["scale"]), np.ravel(config["offset"]))
    return Scaled(scale, offset)


class Scaled(nn.Module):
    """``x * scale + offset``, by channel."""

    def __init__(self, scale: Array, offset: Array) -> None:
        super().__init__()
        self.register_buffer("scale", tensor(scale))
        self.register_buffer("offset", tensor(offset))

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1) if x.ndim == 4 else (-1,)
        return x * self.scale.reshape(shape) + self.offset.reshape(shape)  # type: ignore[operator]


def rectifier(config: Config, _: Arrays) -> nn.Module:
    """ReLU, with its slope or its largest value."""
    require(config, threshold=0.0)
    slope, most = config.get("negative_slope") or 0.0, config.get("max_value")
    if most is None:
        return nn.LeakyReLU(slope) if slope else nn.ReLU()
    require(config, negative_slope=0.0)
    return nn.ReLU6() if most == 6 else nn.Hardtanh(0.0, most)


def parametric(config: Config, arrays: Arrays) -> nn.Module:
    """PReLU with one slope for each channel."""
    slope = arrays["0"]
    if _rank(config) != 4 or slope.size != slope.shape[-1]:
        raise UnknownLayerError(f"of slopes {list(slope.shape)}")
    return filled(nn.PReLU(slope.size), weight=slope.reshape(-1))  # type: ignore[no-any-return]


def pool(kind: str) -> Callable[[Config, Arrays], nn.Module]:
    """Pooling of images."""

    def build(config: Config, _: Arrays) -> nn.Module:
        require(config, data_format="channels_last")
        size, stride = tuple(config["pool_size"]), tuple(config["strides"] or config["pool_size"])
        if len(size) != 2:
            raise UnknownLayerError(f"of {len(size)} axes")
        same = config["padding"] == "same"
        if kind == "max":
            return Function(lambda x: _largest(x, size, stride)) if same else nn.MaxPool2d(size, stride)
        return Function(lambda x: _average(x, size, stride)) if same else nn.AvgPool2d(size, stride)

    return build


def _largest(x: Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """The largest values of windows; padding is never one of them."""
    sides = sides_of(x.shape[2:], size, stride, (1, 1))
    before = [start for start, _ in sides]
    if all(start == end for start, end in sides):
        return functional.max_pool2d(x, size, stride, before)
    if not any(before) and all(end < step for (_, end), step in zip(sides, stride, strict=True)):
        return functional.max_pool2d(x, size, stride, ceil_mode=True)
    if size[0] == 1 or size[1] == 1:
        raise UnknownLayerError(f"with windows {list(size)} every {list(stride)} on images {list(x.shape[2:])}")
    return _largest(_largest(x, (size[0], 1), (stride[0], 1)), (1, size[1]), (1, stride[1]))


def sides_of(
    spatial: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[tuple[int, int]]:
    """Per axis, the padding of Keras' ``same`` at the start and at the end, which gets more."""
    totals = [
        max((-(-size // step) - 1) * step + rate * (length - 1) + 1 - size, 0)
        for size, length, step, rate in zip(spatial, kernel, stride, dilation, strict=True)
    ]
    return [(total // 2, total - total // 2) for total in totals]


def _average(x: Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Averages that leave the padding out."""
    pad = SamePadding(size, stride, (1, 1))
    ones = torch.ones(1, 1, *x.shape[2:])
    return functional.avg_pool2d(pad(x), size, stride) / functional.avg_pool2d(pad(ones), size, stride)


def whole(reduce: Callable[..., Tensor]) -> Callable[[Config, Arrays], nn.Module]:
    """Global pooling of images or sequences."""

    def build(config: Config, _: Arrays) -> nn.Module:
        require(config, data_format="channels_last")
        keep = bool(config.get("keepdims"))
        return Function(lambda x, *_: reduce(x, (2, 3) if x.ndim == 4 else (1,), keep))

    return build


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.mean(axes, keepdim=keep)


def _most(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.amax(axes, keepdim=keep)


def padding(config: Config, _: Arrays) -> nn.Module:
    """ZeroPadding2D."""
    require(config, data_format="channels_last")
    (top, bottom), (left, right) = config["padding"]
    return nn.ZeroPad2d((left, right, top, bottom))


def cropping(config: Config, _: Arrays) -> nn.Module:
    """Cropping2D."""
    require(config, data_format="channels_last")
    (top, bottom), (left, right) = config["cropping"]
    return Function(lambda x: x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right])


def upsampling(config: Config, _: Arrays) -> nn.Module:
    """UpSampling2D."""
    require(config, data_format="channels_last")
    mode, factors = config["interpolation"], [float(factor) for factor in config["size"]]
    if mode not in ("nearest", "bilinear"):
        raise UnknownLayerError(f"with interpolation: {str(mode)[:60]}")
    return nn.Upsample(scale_factor=tuple(factors), mode=mode)


def flatten(_: Config, __: Arrays) -> nn.Module:
    """Flatten, in the order of values there."""
    return Function(lambda x: from_images(x).flatten(1))


def reshape(config: Config, _: Arrays) -> nn.Module:
    """Reshape, in the order of values there."""
    shape = tuple(config["target_shape"])

    def apply(x: Tensor) -> Tensor:
        if x.ndim == 2 and len(shape) == 3 and shape[:2] == (1, 1):
            return x[:, :, None, None]
        return to_images(from_images(x).reshape(x.shape[0], *shape))

    return Function(apply)


def permutation(config: Config, _: Arrays) -> nn.Module:
    """Permute; its axes are those there."""
    order = (0, *config["dims"])
    return Function(lambda x: to_images(from_images(x).permute(order)))


def embedding(_: Config, arrays: Arrays) -> nn.Module:
    """Embedding."""
    table = arrays["0"]
    return filled(nn.Embedding(*table.shape), weight=table)  # type: ignore[no-any-return]


def recurrent(config: Config, arrays: Arrays) -> nn.Module:
    """LSTM and GRU."""
    return _recurrent(config, [{key.removeprefix("cell/"): array for key, array in arrays.items()}])


def bidirectional(config: Config, arrays: Arrays) -> nn.Module:
    """Two recurrent layers, one of which reads from the end."""
    require(config, merge_mode="concat")
    inner = config["layer"]["config"] | {"class_name": config["layer"]["class_name"]}
    ways = [
        {key.removeprefix(f"{way}/cell/"): array for key, array in arrays.items() if key.startswith(way)}
        for way in ("forward_layer", "backward_layer")
    ]
    return _recurrent(inner, ways)


def _recurrent(config: Config, ways: list[Arrays]) -> nn.Module:
    kind = config["class_name"]
    if kind not in ("LSTM", "GRU"):
        raise UnknownLayerError(f"of {str(kind)[:60]}")
    require(config, activation="tanh", recurrent_activation="sigmoid", return_state=False, stateful=False)
    require(config, go_backwards=False, reset_after=True)
    features, units = ways[0]["0"].shape[0], ways[0]["1"].shape[0]
    build: Any = nn.LSTM if kind == "LSTM" else nn.GRU
    layer = build(features, units, bias=bool(config["use_bias"]), batch_first=True, bidirectional=len(ways) == 2)
    for arrays, suffix in zip(ways, ("", "_reverse"), strict=False):
        kernel, recur = (_gates(arrays[key].T, kind) for key in ("0", "1"))
        weights = {f"weight_ih_l0{suffix}": kernel, f"weight_hh_l0{suffix}": recur}
        if config["use_bias"]:
            bias = arrays["2"]
            first, second = (bias, np.zeros_like(bias)) if kind == "LSTM" else bias
            weights |= {f"bias_ih_l0{suffix}": _gates(first, kind), f"bias_hh_l0{suffix}": _gates(second, kind)}
        filled(layer, **weights)
    return Recurrent(layer, sequences=bool(config["return_sequences"]))


def _gates(rows: Array, kind: str) -> Array:
    """Rows of gates in torch's order: a GRU has its update gate first there, and second here."""
    if kind == "LSTM":
        return rows
    update, reset, new = np.split(rows, 3)
    return np.concatenate([reset, update, new])


def _merged(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Config, Arrays], nn.Module]:
    def merge(values: Sequence[Tensor]) -> Tensor:
        result = values[0]
        for value in values[1:]:
            result = function(result, value)
        return result

    return lambda *_: Function(merge)


def average(_: Config, __: Arrays) -> nn.Module:
    """The mean of several tensors."""
    return Function(lambda values: sum(values[1:], start=values[0]) / len(values))


def concatenate(config: Config, _: Arrays) -> nn.Module:
    """Concatenate; its axis is the one there."""
    return Function(lambda values: torch.cat(list(values), axis_of(config["axis"], values[0].ndim)))


def softmax(config: Config, _: Arrays) -> nn.Module:
    """Softmax of one axis."""
    axis = config["axis"]
    if not isinstance(axis, int):
        raise UnknownLayerError(f"of axes {str(axis)[:60]}")
    return Function(lambda x, *_: torch.softmax(x, axis_of(axis, x.ndim)))


def identity(*_: Any) -> nn.Module:
    """What does nothing outside training."""
    return Function(lambda x, *_: x)


BUILDERS: dict[str, Callable[[Config, Arrays], nn.Module]] = {
    "Conv1D": convolution,
    "Conv2D": convolution,
    "DepthwiseConv2D": depthwise,
    "SeparableConv2D": separable,
    "Conv2DTranspose": transposed,
    "Dense": dense,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "Normalization": normalization,
    "Rescaling": rescaling,
    "ReLU": rectifier,
    "LeakyReLU": lambda config, _: nn.LeakyReLU(float(config["negative_slope"])),
    "PReLU": parametric,
    "ELU": lambda config, _: nn.ELU(config["alpha"]),
    "Softmax": softmax,
    "Activation": lambda config, _: activated(identity(), config),
    "MaxPooling2D": pool("max"),
    "AveragePooling2D": pool("average"),
    "GlobalAveragePooling1D": whole(_mean),
    "GlobalAveragePooling2D": whole(_mean),
    "GlobalMaxPooling1D": whole(_most),
    "GlobalMaxPooling2D": whole(_most),
    "ZeroPadding2D": padding,
    "Cropping2D": cropping,
    "UpSampling2D": upsampling,
    "Flatten": flatten,
    "Reshape": reshape,
    "Permute": permutation,
    "Embedding": embedding,
    "LayerScale": lambda _, arrays: Scaled(arrays["0"], np.zeros_like(arrays["0"])),
    "LSTM": recurrent,
    "GRU": recurrent,
    "Bidirectional": bidirectional,
    "Add": _merged(torch.add),
    "Subtract": _merged(torch.sub),
    "Multiply": _merged(torch.mul),
    "Maximum": _merged(torch.maximum),
    "Minimum": _merged(torch.minimum),
    "Average": average,
    "Concatenate": concatenate,
    **dict.fromkeys(("Dropout", "SpatialDropout1D", "SpatialDropout2D", "GaussianNoise", "GaussianDropout"), identity),
    **dict.fromkeys(("AlphaDropout", "ActivityRegularization", "Identity"), identity),
}
"""Per class of Keras, what builds its module."""

OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add,
    "Subtract": torch.sub,
    "Multiply": torch.mul,
    "Divide": torch.div,
    "TrueDivide": torch.div,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
}
"""Functions of ``keras.ops`` between tensors of one layout, and numbers."""
