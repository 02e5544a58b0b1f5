"""Scenes of several garments on textured ground, with the class of each pixel and a box around each garment.

A scene depends on nothing but the images, a seed and its own number, so any one of them can be made again alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

FASHION = Path(__file__).parent.parent / "fashion_mnist"
CLASSES = ("top", "trouser", "dress", "shoe", "bag")
CLASS_OF = (0, 1, 0, 2, 0, 3, 0, 3, 4, 3)
"""Fashion-MNIST's ten classes as five: its tops, and its shoes, differ in details that small garments lose."""
SIZE = 96
SMALLEST, LARGEST = 14, 60
"""Side in pixels of the square that holds a garment."""
GARMENTS = 6
LEAST_VISIBLE = 0.6
"""Share of a garment that the ones in front of it leave to be seen."""
GREY_STEP = 4
"""Grey values are multiples of it, which compress to two thirds of the size."""
SOLID = 12
"""Grey value of Fashion-MNIST from which a pixel belongs to the garment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A scene: ``image (96, 96) uint8``, ``mask (96, 96) uint8`` (0: ground, else class + 1), ``boxes (M, 4) uint8``
    as corners x1, y1, x2, y2 in pixels, and ``classes (M,) uint8``.
    """

    image: Bytes
    mask: Bytes
    boxes: Bytes
    classes: Bytes


@dataclass(frozen=True, slots=True)
class Scenes:
    """Scenes one after the other: ``images``, ``masks`` ``(N, 96, 96)``; boxes and classes of all, with offsets."""

    images: Bytes
    masks: Bytes
    boxes: Bytes
    classes: Bytes
    offsets: np.ndarray[Any, np.dtype[np.int32]]

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """As they are stored in an npz."""
        return {name: getattr(self, name) for name in self.__slots__}


def compose_all(split: str, numbers: Iterable[int]) -> Scenes:
    """The scenes of these numbers, from Fashion-MNIST's ``train`` or ``test`` images."""
    with np.load(FASHION / f"{split}.npz") as stored:
        images, labels = stored["images"], stored["labels"]
    scenes = [compose(images, labels, seed=len(images), number=number) for number in numbers]
    return Scenes(
        np.stack([scene.image for scene in scenes]),
        np.stack([scene.mask for scene in scenes]),
        np.concatenate([scene.boxes for scene in scenes]),
        np.concatenate([scene.classes for scene in scenes]),
        np.cumsum([0, *(len(scene.boxes) for scene in scenes)]).astype(np.int32),
    )


def compose(images: Bytes, labels: Bytes, *, seed: int, number: int) -> Scene:
    """One scene: garments at random places, each in front of the earlier ones.

    Args:
        images: Garments ``(N, 28, 28)``, black around.
        labels: Fashion-MNIST's classes ``(N,)``.
    """
    random = np.random.default_rng([seed, number])
    picture = _ground(random)
    owner = np.zeros((SIZE, SIZE), np.intp)  # 0: ground, else one more than the garment's position in `classes`
    areas: list[int] = []
    classes: list[int] = []
    for _ in range(random.integers(2, GARMENTS + 1)):
        chosen = random.integers(len(images))
        garment, cover = _garment(images[chosen], random)
        height, width = cover.shape
        top, left = random.integers(SIZE - height + 1), random.integers(SIZE - width + 1)
        place = np.s_[top : top + height, left : left + width]
        after = owner.copy()
        after[place][cover > 0.5] = len(areas) + 1
        seen = np.bincount(after.ravel(), minlength=len(areas) + 2)[1:]
        if (seen < LEAST_VISIBLE * np.array([*areas, seen[-1]])).any():
            continue  # it would hide another one
        owner = after
        areas.append(int(seen[-1]))
        classes.append(CLASS_OF[labels[chosen]])
        picture[place] += cover * (garment - picture[place])
    kinds = np.array([0, *(kind + 1 for kind in classes)], np.uint8)
    return Scene(
        image=np.clip(picture, 0, 255).astype(np.uint8) // GREY_STEP * GREY_STEP,
        mask=kinds[owner],
        boxes=np.array([_box(owner == index + 1) for index in range(len(areas))], np.uint8).reshape(-1, 4),
        classes=kinds[1:] - 1,
    )


def _ground(random: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Blurred noise of three finenesses around a random grey: ``(96, 96)``."""
    ground = np.full((SIZE, SIZE), random.uniform(40, 200))
    for cells, contrast in ((4, 30), (12, 16), (32, 10)):
        noise = random.normal(0, contrast * random.uniform(0.3, 1), (cells, cells)).astype(np.float32)
        ground += np.asarray(Image.fromarray(noise).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    return ground


def _garment(
    image: Bytes, random: np.random.Generator
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], np.ndarray[Any, np.dtype[np.float64]]]:
    """A garment at a random size, cropped to itself: grey values, and how much each pixel covers, from 0 to 1."""
    side = round(SMALLEST * (LARGEST / SMALLEST) ** random.uniform())
    if random.integers(2):
        image = image[:, ::-1]
    solid = Image.fromarray(np.where(image >= SOLID, 255, 0).astype(np.uint8))
    resample = Image.Resampling.BILINEAR
    cover = np.asarray(solid.resize((side, side), resample)) / 255
    grey = np.asarray(Image.fromarray(image).resize((side, side), resample)) / np.maximum(cover, 1 / 8)
    x1, y1, x2, y2 = _box(cover > 0.5)
    darkest, brightest = sorted(random.uniform(0, 255, 2))
    garment = darkest + np.clip(grey, 0, 255) / 255 * max(brightest - darkest, 90)
    return garment[y1:y2, x1:x2], cover[y1:y2, x1:x2]


def _box(solid: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[int, int, int, int]:
    """Corners x1, y1, x2, y2 around what is true."""
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
