"""What a report shows of a prediction, or of a label, on top of the sample's image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.core.arrays import Array

COLOURS = np.array(
    [(230, 97, 1), (30, 136, 229), (0, 158, 115), (216, 27, 96), (240, 200, 0), (126, 87, 194)], np.uint8
)
"""Of classes, in turn: told apart also by readers who do not see all colours."""
OPACITY = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A box in pixels of the image, its class, and how sure the model is; None for a label."""

    corners: tuple[float, float, float, float]
    kind: int
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What lies on top of the image.

    Attributes:
        overlay: ``(H, W)``, ``(H, W, 3)`` or, with opacity, ``(H, W, 4) uint8``; None where there is none.
    """

    overlay: Array | None = None
    boxes: tuple[Box, ...] = ()


Show = Callable[[Any], View]
"""The view of one sample's prediction, and of its label, which has the same form."""


def coloured(mask: Tensor) -> Array:
    """A class per pixel ``(H, W)`` as colours ``(H, W, 4) uint8``; class 0 and pixels without one are transparent."""
    kinds = mask.numpy().astype(np.int64)
    colours = COLOURS[(kinds - 1) % len(COLOURS)]
    opacity = np.where((kinds > 0) & (kinds != 255), OPACITY, 0).astype(np.uint8)
    return np.concatenate([colours, opacity[..., None]], 2)


def pixels(image: Tensor, top: float) -> Array:
    """An image ``(C, H, W)`` with values up to ``top`` as ``(H, W, C) uint8``, of one channel or of the first three."""
    channels = 3 if image.shape[0] >= 3 else 1
    levels = (image[:channels].float() * (255 / top)).round().clamp(0, 255)
    found: Array = levels.permute(1, 2, 0).numpy().astype(np.uint8)
    return found[..., 0] if channels == 1 else found
