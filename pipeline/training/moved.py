"""How labels follow images whose pixels kornia has moved: as masks or as points of its own, for each kind of labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.data.places import IGNORED, Kind, Size, clipped, inside


@dataclass(frozen=True, slots=True)
class Moved:
    """What has become of what kornia was given.

    Attributes:
        values: As kornia returns them.
        mirrored: Which images are mirrored: ``(N,) bool``.
        size: Height and width of the images.
        swap: Pairs of keypoints that change places in a mirrored image.
    """

    values: Tensor
    mirrored: Tensor
    size: Size
    swap: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Ways:
    """How labels are given to kornia and taken back.

    Attributes:
        key: What kornia takes them for.
        given: Labels of a batch, and the images' size, as kornia takes them.
        taken: The labels before, and what kornia made of what it was given, as labels.
    """

    key: str
    given: Callable[[Any, Size], Tensor]
    taken: Callable[[Any, Moved], Any]


def ways_of(kind: Kind) -> Ways | None:
    """None for labels that say nothing of places, or of which that is unknown."""
    return _WAYS.get(kind)


def _corners(labels: list[dict[str, Tensor]], _: Size) -> Tensor:
    """The four corners of every box as points ``(N, 4 * M, 2)``; images with fewer boxes are padded with zeros.

    A point's coordinates are those of pixels, half a pixel less than a box's.
    """
    most = max((len(label["boxes"]) for label in labels), default=0)
    found = labels[0]["boxes"].new_zeros(len(labels), 4 * most, 2)
    for sample, label in enumerate(labels):
        boxes = label["boxes"]
        found[sample, : 4 * len(boxes)] = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2) - 0.5
    return found


def _boxes(labels: list[dict[str, Tensor]], moved: Moved) -> list[dict[str, Tensor]]:
    """The boxes around the moved corners, cut at the image's edges; of which too little is left are gone."""
    found = []
    for label, points in zip(labels, moved.values, strict=True):
        corners = points[: 4 * len(label["boxes"])].reshape(-1, 4, 2) + 0.5
        around = torch.cat([corners.amin(1), corners.amax(1)], 1).cpu().numpy()
        cut, kept = clipped(around, moved.size)
        parts = {name: values[torch.from_numpy(kept)] for name, values in label.items()}
        found.append(parts | {"boxes": torch.from_numpy(cut[kept]).to(label["boxes"])})
    return found


def _points(labels: Tensor, moved: Moved) -> Tensor:
    """Points that have left the image are no longer labelled."""
    flat = moved.values.reshape(-1, 2).cpu().numpy()
    seen = torch.from_numpy(inside(flat, moved.size)).reshape(labels.shape[:2]).to(labels)
    found = torch.cat([moved.values, (labels[..., 2] * seen)[..., None]], 2)
    order = torch.arange(labels.shape[1])
    for one, other in moved.swap:
        order[one], order[other] = other, one
    return torch.where(moved.mirrored[:, None, None], found[:, order], found)


def _classes(labels: Tensor, size: Size) -> Tensor:
    """Classes from 1, so that the zeros that kornia fills in are the pixels that count for nothing."""
    return _resized(torch.where(labels == IGNORED, 0, labels + 1).float()[:, None], size)


def _mask(labels: Tensor, moved: Moved) -> Tensor:
    found = _resized(moved.values, (labels.shape[1], labels.shape[2])).round().long()[:, 0]
    return torch.where(found == 0, IGNORED, found - 1)


def _map(labels: Tensor, moved: Moved) -> Tensor:
    """Zero where there is no image: no measurement."""
    return _resized(moved.values, (labels.shape[1], labels.shape[2]))[:, 0]


def _image(labels: Tensor, moved: Moved) -> Tensor:
    """Labels that are images can only be mirrored, whatever their size; all else is refused."""
    return torch.where(moved.mirrored.reshape(-1, *(1,) * (labels.ndim - 1)), labels.flip(-1), labels)


def _resized(values: Tensor, size: Size) -> Tensor:
    """Values per pixel ``(N, 1, H, W)`` of the nearest pixel: a model's maps may be smaller than its images."""
    if values.shape[-2:] == size:
        return values
    return functional.interpolate(values, size, mode="nearest-exact")


_WAYS: dict[Kind, Ways] = {
    "boxes": Ways("keypoints", _corners, _boxes),
    "points": Ways("keypoints", lambda labels, _: labels[..., :2].clone(), _points),
    "mask": Ways("mask", _classes, _mask),
    "map": Ways("mask", lambda labels, size: _resized(labels[:, None].clone(), size), _map),
    "image": Ways("keypoints", lambda labels, _: labels.new_zeros(len(labels), 1, 2), _image),
}
