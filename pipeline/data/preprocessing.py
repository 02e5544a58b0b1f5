"""Preprocessing: from stored samples to model inputs, and back.

>>> halved = Preprocessing(scale=0.5, mean=(1.0,), std=(2.0,))
>>> normalise(torch.tensor([[[[6.0]]]]), halved), denormalise(torch.tensor([[[[1.0]]]]), halved)
(tensor([[[[1.]]]]), tensor([[[[6.]]]]))
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.core import DataError, Preprocessing, TensorSpec
from pipeline.core.arrays import Array
from pipeline.data.places import Frame, Size, frame_of


def prepare(stored: Array, spec: TensorSpec, preprocessing: Preprocessing) -> Tensor:
    """The model input ``(N, …)`` of stored samples.

    Args:
        stored: ``(N, …)``, or ``(N,)`` of arrays of different sizes, which ``resize`` or ``crop`` brings to one size.
        spec: The input; only its dtype and its number of channels are looked at.
    """
    stored = _native(stored)
    if not spec.dtype.startswith("float"):
        return torch.from_numpy(np.ascontiguousarray(stored)).to(getattr(torch, spec.dtype))
    if stored.dtype == object:
        return torch.cat([_prepare_floats(sample[None], spec, preprocessing) for sample in stored])
    return _prepare_floats(stored, spec, preprocessing)


def prepared_shape(stored: Array, spec: TensorSpec, preprocessing: Preprocessing) -> tuple[int, ...]:
    """The shape of one sample as an input, whatever sizes the spec has.

    Args:
        stored: As for `prepare`.
    """
    first = stored[0][None] if stored.dtype == object else stored[:1]
    if not spec.dtype.startswith("float") or len(spec.shape) != 3:
        return tuple(first.shape[1:])
    if preprocessing.resize is not None or preprocessing.crop is not None:
        return (spec.shape[0], *_frame(_size(first, spec, preprocessing), preprocessing).size)
    return tuple(prepare(first, spec, preprocessing).shape[1:])


def frames(stored: Array, spec: TensorSpec, preprocessing: Preprocessing) -> list[Frame] | None:
    """Where each stored image lies in the model's input; None where all stay as they are, or are no images.

    Args:
        stored: As for `prepare`.
    """
    if not spec.dtype.startswith("float") or (preprocessing.resize is None and preprocessing.crop is None):
        return None
    found = [_frame(size, preprocessing) for size in sizes(stored, spec, preprocessing)]
    return None if all(frame.keeps for frame in found) else found


def sizes(stored: Array, spec: TensorSpec, preprocessing: Preprocessing) -> list[Size]:
    """Height and width of each stored image."""
    if stored.dtype != object:
        return [_size(stored, spec, preprocessing)] * len(stored)
    return [_size(sample[None], spec, preprocessing) for sample in stored]


def _size(stored: Array, spec: TensorSpec, preprocessing: Preprocessing) -> Size:
    """Height and width of stored images ``(N, …)``."""
    height, width = (
        stored.shape[1:3] if stored.ndim == 4 and _is_nhwc(stored, spec, preprocessing) else stored.shape[-2:]
    )
    return height, width


def _frame(stored: Size, preprocessing: Preprocessing) -> Frame:
    letterbox = preprocessing.letterbox is not None
    return frame_of(
        stored,
        resize=preprocessing.resize,
        crop=preprocessing.crop,
        letterbox=letterbox,
        cover=preprocessing.cover,
    )


def normalise(values: Tensor, preprocessing: Preprocessing) -> Tensor:
    """``(x * scale - mean) / std`` per channel of values ``(N, C, …)``."""
    values = values * preprocessing.scale
    if preprocessing.mean:
        values = values - _per_channel(preprocessing.mean, values)
    if preprocessing.std:
        values = values / _per_channel(preprocessing.std, values)
    return values


def denormalise(values: Tensor, preprocessing: Preprocessing) -> Tensor:
    """``(x * std + mean) / scale`` per channel of values ``(N, C, …)``: the inverse of `normalise`."""
    if preprocessing.std:
        values = values * _per_channel(preprocessing.std, values)
    if preprocessing.mean:
        values = values + _per_channel(preprocessing.mean, values)
    return values / preprocessing.scale


def stored_pixels(values: Array, preprocessing: Preprocessing) -> Array:
    """The pixels ``(N, C, H, W) uint8`` that preprocessing turns into ``values``, to the nearest level.

    >>> stored_pixels(np.ones((1, 1, 1, 2), np.float32), Preprocessing(scale=1 / 255, mean=(0.25,), std=(0.5,)))
    array([[[[191, 191]]]], dtype=uint8)
    """
    levels: Array = denormalise(torch.tensor(values), preprocessing).numpy()
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _native(stored: Array) -> Array:
    """The same numbers in a form that torch has: this machine's byte order, and at most 64 bits."""
    if stored.dtype.kind == "f" and stored.dtype.itemsize > np.dtype(np.float64).itemsize:
        return stored.astype(np.float64)
    return stored if stored.dtype.isnative else stored.astype(stored.dtype.newbyteorder("="))


def _prepare_floats(stored: Array, spec: TensorSpec, preprocessing: Preprocessing) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(stored)).to(torch.float32)
    if tensor.ndim == len(spec.shape) and len(spec.shape) == 3 and spec.shape[0] == 1:
        tensor = tensor.unsqueeze(1)  # greyscale images stored without a channel axis
    elif tensor.ndim == 4 and _is_nhwc(tensor, spec, preprocessing):
        tensor = tensor.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)  # one channel, too
    _require_sizes(tensor, spec, preprocessing)
    if preprocessing.resize is not None or preprocessing.crop is not None:
        tensor = _framed(tensor, preprocessing)
    return normalise(tensor, preprocessing)


def _framed(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Images ``(N, C, H, W)`` where their frame says; a negative padding crops."""
    frame = _frame((images.shape[-2], images.shape[-1]), preprocessing)
    if preprocessing.resize is not None:
        images = functional.interpolate(images, frame.resized, mode="bilinear", antialias=True)
    (top, left), (height, width) = frame.offset, frame.size
    bottom, right = height - top - frame.resized[0], width - left - frame.resized[1]
    return functional.pad(images, (left, right, top, bottom), value=preprocessing.letterbox or 0.0)


def _require_sizes(images: Tensor, spec: TensorSpec, preprocessing: Preprocessing) -> None:
    """Refuse sizes that cannot end in the input's, before memory is taken for them."""
    resize, crop = preprocessing.resize, preprocessing.crop
    if (resize or crop) and (images.ndim != 4 or len(spec.shape) != 3):
        problem = f"resize and crop are for images [channels, height, width], and {spec.name!r} is {list(spec.shape)}"
        raise DataError(problem, where="data.preprocessing", fix="leave them out")
    before = resize or tuple(images.shape[-2:])
    if crop is not None and (crop[0] > before[0] or crop[1] > before[1]):
        raise DataError(
            f"crop {list(crop)} is larger than the images, {list(before)}", where="data.preprocessing", fix="add resize"
        )
    if resize is not None and crop is None and resize != spec.shape[1:]:
        raise DataError(
            f"resize gives {list(resize)}, but the model takes {list(spec.shape[1:])}",
            where="data.preprocessing",
            fix="set resize to the input's size, or add crop",
        )


def _is_nhwc(tensor: Tensor | Array, spec: TensorSpec, preprocessing: Preprocessing) -> bool:
    if preprocessing.layout != "auto":
        return preprocessing.layout == "nhwc"
    return tensor.shape[1] != spec.shape[0] and tensor.shape[-1] == spec.shape[0]


def _per_channel(constants: Sequence[float], values: Tensor) -> Tensor:
    """One constant per channel as ``(1, C or 1, 1, …)``, on the device of ``values``; one in all for ``(N,)``."""
    channels = values.shape[1] if values.ndim > 1 else 1
    if len(constants) not in (1, channels):
        raise DataError(
            f"mean or std has {len(constants)} numbers, and an input has {channels} channels",
            where="data.preprocessing",
            fix="give one number, or one for each channel of every float input",
        )
    if values.ndim == 1:
        return torch.tensor(constants, device=values.device)
    return torch.tensor(constants, device=values.device).view(1, -1, *(1,) * (values.ndim - 2))
