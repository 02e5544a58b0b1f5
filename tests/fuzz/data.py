"""Inputs of random networks, and samples that look like real ones: neighbours alike, a few values far out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.fuzz.spec import Value

SAMPLES = 32
VOCABULARY = 24


@dataclass(frozen=True)
class Input:
    """An input: what its axes mean, its dtype, and how samples ``(N, …)`` of it are made."""

    value: Value
    dtype: str
    samples: Callable[[np.random.Generator, tuple[int, ...]], Tensor]


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """Student's t with 5 degrees of freedom: 1 value in 100 lies beyond four standard deviations of a normal one."""
    return torch.from_numpy(rng.standard_t(5, shape).astype(np.float32) / 1.29)


def image(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """A smooth field, some noise, and channels that have much in common: ``(N, C, H, W)``."""
    n, c, h, w = shape
    coarse = _noise(rng, (n, c, max(h // 3, 2), max(w // 3, 2)))
    smooth = F.interpolate(coarse, (h, w), mode="bilinear", align_corners=False)
    shared = smooth.mean(1, keepdim=True)
    return 0.8 * smooth + 0.8 * shared + 0.2 * _noise(rng, shape) + 0.3


def series(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """Steps ``(N, T, C)`` that each remember the last one."""
    steps = [_noise(rng, (shape[0], shape[2]))]
    for _ in range(shape[1] - 1):
        steps.append(0.8 * steps[-1] + 0.6 * _noise(rng, (shape[0], shape[2])))
    return features(rng, shape) * 0.3 + torch.stack(steps, 1)


def features(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """Vectors ``(…, C)`` with most of their variance in a few directions."""
    c = shape[-1]
    directions = _noise(rng, (min(3, c), c))
    return _noise(rng, (*shape[:-1], len(directions))) @ directions * 0.6 + 0.3 * _noise(rng, shape)


def ids(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """Token ids: frequent ones are small, and 0 fills the end."""
    drawn = np.minimum(rng.zipf(1.5, shape), VOCABULARY - 1)
    return torch.from_numpy(np.where(kept(rng, shape).numpy(), drawn, 0))


def kept(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """Masks ``(N, T)``: true up to a length of at least one."""
    lengths = rng.integers(1, shape[1] + 1, shape[0])
    return torch.from_numpy(np.arange(shape[1]) < lengths[:, None])


def kept_or_empty(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """The same, where every fourth sample has no token at all."""
    return kept(rng, shape) & (torch.arange(shape[0]) % 4 != 3)[:, None]


def pixels(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return (image(rng, shape) * 40 + 100).clamp(0, 255).to(torch.uint8)


def one_number(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return _noise(rng, shape).abs() + 0.1


INPUTS = {
    "image": Input(Value("image", (3, 8, 8)), "float32", image),
    "odd_image": Input(Value("image", (4, 9, 7)), "float32", image),
    "grey": Input(Value("image", (1, 12, 12)), "float32", image),
    "features": Input(Value("image", (8, 6, 6)), "float32", image),
    "tokens": Input(Value("tokens", (6, 8)), "float32", series),
    "more_tokens": Input(Value("tokens", (5, 12)), "float32", series),
    "signal": Input(Value("signal", (4, 16)), "float32", lambda r, s: series(r, (s[0], s[2], s[1])).mT.contiguous()),
    "vector": Input(Value("vector", (8,)), "float32", features),
    "state": Input(Value("vector", (6,)), "float32", lambda r, s: features(r, s).tanh()),
    "channels_last": Input(Value("channels_last", (8, 8, 4)), "float32", lambda r, s: image(
        r, (s[0], s[3], s[1], s[2])).permute(0, 2, 3, 1).contiguous()),
    "volume": Input(Value("volume", (2, 4, 6, 6)), "float32", lambda r, s: image(
        r, (s[0], s[1] * s[2], s[3], s[4])).view(s)),
    "ids": Input(Value("ids", (6,)), "int64", ids),
    "short_ids": Input(Value("ids", (6,)), "int32", lambda r, s: ids(r, s).int()),
    "mask": Input(Value("mask", (6,)), "bool", kept),
    "mask_or_empty": Input(Value("mask", (6,)), "bool", kept_or_empty),
    "pixels": Input(Value("pixels", (3, 8, 8)), "uint8", pixels),
    "half": Input(Value("half", (8,)), "float16", lambda r, s: features(r, s).half()),
    "number": Input(Value("number", ()), "float32", one_number),
}  # fmt: skip

SETS = (
    *[("image",)] * 6, *[("features",)] * 3, *[("tokens",)] * 4, *[("vector",)] * 2, *[("signal",)] * 2,
    *[("image", "image")] * 2, ("image", "vector"), ("odd_image",), ("odd_image",), ("grey",), ("ids",), ("ids",),
    ("tokens", "mask"), ("tokens", "mask"), ("ids", "mask"), ("channels_last",), ("tokens", "more_tokens"),
    ("vector", "state"), ("vector", "vector"), ("volume",), ("tokens", "mask_or_empty"), ("short_ids",),
    ("pixels",), ("half",), ("vector", "number"), ("image", "tokens"),
)  # fmt: skip
"""Sets of inputs that networks take; common ones stand here several times."""
