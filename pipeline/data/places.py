"""Places in images: what labels say about them, and how labels follow an image that is resized, padded and cropped.

Boxes lie in continuous coordinates, in which an image of width W reaches from 0 to W. Points lie in those of pixels, in
which the centre of the first pixel is 0. Both are x, y.

>>> frame = frame_of((2, 4), resize=(8, 8), crop=None, letterbox=True)
>>> frame.scale, frame.offset  # twice as high and wide, below a margin of two pixels
((2.0, 2.0), (2, 0))
>>> frame.moved_boxes(np.array([[0.0, 0.0, 1.0, 1.0]])).tolist()
[[0.0, 2.0, 2.0, 4.0]]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from pipeline.core.arrays import Array

Kind = Literal["nowhere", "unknown", "boxes", "mask", "map", "points", "image"]
"""What labels say about places in the image:

- ``nowhere``: nothing, such as a class for each sample.
- ``unknown``: only the user's own metrics know.
- ``boxes``, ``points``: where objects and keypoints are, in pixels of the stored image.
- ``mask``, ``map``: a class, or a number, for each pixel. Nothing is known about pixels beside the image.
- ``image``: another image of the same scene, of the size that the model returns.
"""
Size = tuple[int, int]
"""Height and width in pixels."""

IGNORED = 255
"""A mask's value for pixels that count for nothing."""
LEAST_SHARE = 0.1
"""Of a box's area that has to remain in the image; a box of which less is seen is no longer labelled."""
SHARE_EDGE = 1e-3
"""By which a share of the image's sides may exceed 1: it is rounded."""
LEAST_SIDE = 1.0
"""Pixels that a box must still be high and wide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """How labels of one form follow their image.

    Attributes:
        refused: Augmentations that labels of this form cannot follow, and why, in words that follow their name.
        swap: Pairs of keypoints that change places when the image is mirrored, such as a left and a right eye.
        size: Of an image that is the label: its height and width.
    """

    kind: Kind
    size: Size | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    swap: tuple[tuple[int, int], ...] = ()


NOWHERE = Places(kind="nowhere")
MAY_BE_POSITIONS = Places(
    kind="nowhere",
    refused=dict.fromkeys(
        ("horizontal_flip", "rotation", "shift"), "the labels may be positions or angles, which would change"
    ),
)
OTHER_IMAGE = Places(
    kind="image",
    refused={
        "rotation": "the label shows nothing of what is beside its image",
        "shift": "the label shows nothing of what is beside its image",
        "color_jitter": "the label would keep its colours",
        "erasing": "the label would keep what is erased",
    },
)


def in_order(what: str) -> Places:
    """Labels that follow the image from left to right, but name no pixel."""
    return Places(
        kind="nowhere",
        refused={
            "horizontal_flip": f"the {what} would have to be read backwards",
            "rotation": f"the {what} would no longer lie in a line",
            "shift": f"the beginning or the end of the {what} may leave the image",
        },
    )


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a stored image lies in a model's input: first scaled, then moved by ``offset`` and cut to ``size``.

    Attributes:
        scale: By which height and width grow.
        offset: Rows and columns between the input's corner and the image's; negative where the image is cropped.
    """

    stored: Size
    resized: Size
    offset: tuple[int, int]
    size: Size

    @property
    def scale(self) -> tuple[float, float]:
        return self.resized[0] / self.stored[0], self.resized[1] / self.stored[1]

    @property
    def keeps(self) -> bool:
        """Whether everything stays where it is."""
        return self.stored == self.resized == self.size

    def moved_boxes(self, corners: Array) -> Array:
        """Boxes ``(M, 4)`` of the stored image, in the input; some may lie outside."""
        (down, right), (top, left) = self.scale, self.offset
        return corners * np.array([right, down] * 2, np.float32) + np.array([left, top] * 2, np.float32)

    def moved_points(self, points: Array) -> Array:
        """Points ``(K, 2 or 3)`` of the stored image, in the input; a third number says whether a point is labelled."""
        (down, right), (top, left) = self.scale, self.offset
        places = (points[:, :2] + 0.5) * np.array([right, down]) - 0.5 + np.array([left, top])
        last = points[:, 2:] if points.shape[1] > 2 else np.ones((len(points), 1))
        return np.concatenate([places, last * inside(places, self.size)[:, None]], 1)

    def moved_pixels(self, values: Array, beside: float) -> Array:
        """A value per pixel ``(H, W)`` of the stored image, for each of the input; ``beside`` where there is no image.

        The nearest pixel counts: between two classes lies no third one.
        """
        found = np.full(self.size, beside, values.dtype)
        rows, columns = (
            np.floor((np.arange(self.size[axis]) - self.offset[axis] + 0.5) / self.scale[axis]).astype(int)
            for axis in (0, 1)
        )
        height, width = self.stored
        seen_rows, seen_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
        found[np.ix_(seen_rows, seen_columns)] = values[np.ix_(rows[seen_rows], columns[seen_columns])]
        return found


def frame_of(
    stored: Size, *, resize: Size | None, crop: Size | None, letterbox: bool = False, cover: bool = False
) -> Frame:
    """Where an image of this height and width lies after preprocessing.

    >>> frame_of((300, 400), resize=(256, 256), crop=(224, 224), cover=True)  # the shorter side becomes 256
    Frame(stored=(300, 400), resized=(256, 341), offset=(-16, -58), size=(224, 224))
    """
    resized = canvas = resize or stored
    if resize is not None and cover:
        ratio = max(resize[0] / stored[0], resize[1] / stored[1])
        resized = (max(resize[0], int(stored[0] * ratio + 1e-6)), max(resize[1], int(stored[1] * ratio + 1e-6)))
        size = crop or canvas
        return Frame(stored, resized, (-((resized[0] - size[0]) // 2), -((resized[1] - size[1]) // 2)), size)
    if resize is not None and letterbox:
        ratio = min(resize[0] / stored[0], resize[1] / stored[1])
        resized = (max(1, round(stored[0] * ratio)), max(1, round(stored[1] * ratio)))
    size = crop or canvas
    top, left = ((canvas[a] - resized[a]) // 2 - (canvas[a] - size[a]) // 2 for a in (0, 1))
    return Frame(stored, resized, (top, left), size)


def inside(points: Array, size: Size) -> Array:
    """Which points ``(K, 2)`` lie in an image: ``(K,) bool``."""
    height, width = size
    return np.asarray(
        (points[:, 0] > -0.5) & (points[:, 0] < width - 0.5) & (points[:, 1] > -0.5) & (points[:, 1] < height - 0.5)
    )


def as_corners(label: Any, box_format: str, size: Size) -> Any:
    """A label whose boxes are given in another format, with corners in pixels; others unchanged.

    Args:
        size: Height and width of the image; boxes of a format that ends in n are shares of them.

    Raises:
        ValueError: Such a box has a number beyond 1.

    >>> as_corners({"boxes": np.array([[4, 4, 2, 6]])}, "cxcywh", (8, 8))["boxes"].tolist()
    [[3.0, 1.0, 5.0, 7.0]]
    >>> as_corners({"boxes": np.array([[0.5, 0.5, 0.5, 1]])}, "cxcywhn", (8, 16))["boxes"].tolist()
    [[4.0, 0.0, 12.0, 8.0]]
    """
    if box_format == "xyxy" or not isinstance(label, Mapping) or "boxes" not in label:
        return label
    boxes = np.asarray(label["boxes"]).astype(np.float64)
    if boxes.ndim == 0 or boxes.shape[-1] != 4:  # the form of labels refuses it, or there are none
        return label
    if box_format.endswith("n"):
        if (np.abs(boxes) > 1 + SHARE_EDGE).any():
            odd = boxes[(np.abs(boxes) > 1 + SHARE_EDGE).any(-1)][0]
            raise ValueError(f"has the box {odd.tolist()}, which are no shares of the image's width and height")
        boxes = boxes * np.array([size[1], size[0]] * 2)
    first, sides = boxes[..., :2], boxes[..., 2:]
    if box_format.startswith("xyxy"):
        return {**label, "boxes": boxes}
    low = first - sides / 2 if box_format.startswith("cxcywh") else first
    return {**label, "boxes": np.concatenate([low, low + sides], -1)}


def clipped(corners: Array, size: Size) -> tuple[Array, Array]:
    """Boxes ``(M, 4)`` cut at the edges of an image, and which of them are still labelled ``(M,) bool``.

    >>> clipped(np.array([[-1.0, 0.0, 3.0, 2.0], [-9.0, 0.0, 0.5, 2.0]]), (4, 4))
    (array([[0. , 0. , 3. , 2. ],
           [0. , 0. , 0.5, 2. ]]), array([ True, False]))
    """
    height, width = size
    cut = np.clip(corners, 0, np.array([width, height] * 2, corners.dtype))
    sides, before = cut[:, 2:] - cut[:, :2], corners[:, 2:] - corners[:, :2]
    return cut, (sides.prod(1) >= LEAST_SHARE * before.prod(1)) & (sides >= np.minimum(before, LEAST_SIDE)).all(1)


def follow(kind: Kind, label: Any, frame: Frame) -> Any:
    """A label in the coordinates of the model's input, where it is one that has places; else as it is."""
    if kind == "boxes" and isinstance(label, Mapping) and "boxes" in label:
        corners = np.asarray(label["boxes"], np.float32).reshape(-1, 4)
        cut, kept = clipped(frame.moved_boxes(corners), frame.size)
        rest = {name: np.asarray(values)[kept] for name, values in label.items() if name != "boxes"}
        return {"boxes": cut[kept], **rest}
    if kind == "points" and (points := np.asarray(label)).ndim == 2 and points.shape[1] in (2, 3):
        return frame.moved_points(points)
    if kind in ("mask", "map") and _is_of(values := np.asarray(label), frame.stored):
        values = values.astype(np.int64) if values.dtype.kind in "biu" else values  # which holds 255, too
        return frame.moved_pixels(values.reshape(frame.stored), IGNORED if kind == "mask" else 0)
    return label


def follow_image(label: Array, frame: Frame, size: Size) -> Array:
    """An image that is the label of another one, in the model's output: it is resized and cut as its image was.

    Args:
        label: ``(C, H, W)``, ``(H, W, C)`` or ``(H, W)``; one of the output's size, or of other proportions than the
            stored image, stays as it is.
        size: Of the model's output.
    """
    candidates = {2: [(0, 1)], 3: [(1, 2), (0, 1)]}.get(label.ndim, [])
    axes = next(
        (pair for pair in candidates if _alike((label.shape[pair[0]], label.shape[pair[1]]), frame.stored)), None
    )
    if axes is None or (label.shape[axes[0]], label.shape[axes[1]]) == size or not _alike(size, frame.size):
        return label
    pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(label, axes, (-2, -1)), np.float32))
    pixels = pixels.reshape(1, -1, *pixels.shape[-2:])
    grown = size[0] / frame.size[0]
    height, width = (round(side * grown) for side in frame.resized)
    top, left = (round(moved * grown) for moved in frame.offset)
    pixels = functional.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    bottom, right = size[0] - top - height, size[1] - left - width
    found: Array = functional.pad(pixels, (left, right, top, bottom))[0].numpy()
    return found if label.ndim == 3 else found[0]


def _alike(one: Size, other: Size) -> bool:
    """Whether two images have the same proportions."""
    return one[0] * other[1] == one[1] * other[0]


def _is_of(values: Array, size: Size) -> bool:
    """Whether there is one value for each pixel; an axis of one channel may be there."""
    return values.shape[-2:] == size and values.size == size[0] * size[1]
