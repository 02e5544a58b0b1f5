"""COCO's average precision of boxes, as pycocotools computes it (https://cocodataset.org/#detection-eval)."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torchmetrics import Metric

from pipeline.core.arrays import Array

MOST_DETECTIONS = 100
"""Of an image and class, as COCO counts them."""
RECALLS = np.linspace(0, 1, 101)
"""Where precision is read off."""


@dataclass(frozen=True, slots=True)
class Matches:
    """What became of an image's detections of one class, the best first, at each overlap from 0.50 to 0.95.

    Attributes:
        scores: ``(D,)``.
        right: Matched with an object ``(10, D)``.
        counted: Not matched with a crowd ``(10, D)``.
        objects: How many there are to be found.
    """

    scores: Array
    right: Array
    counted: Array
    objects: int


class BoxPrecision(Metric):
    """Mean average precision of detections: over IoU 0.50:0.95 (``map``), and at 0.50 (``map50``).

    torchmetrics' own needs torchvision, whose operators cannot be loaded beside this torch. pycocotools matches
    detections with objects, once for each image; the rest is fast enough for a bootstrap.

    Args:
        classes: How many there are; those without a labelled box count for nothing.
    """

    full_state_update = False
    detections: list[Array]
    objects: list[Array]
    matched: list[list[Matches]]

    def __init__(self, classes: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.classes = classes
        self.detections, self.objects, self.matched = [], [], []

    def update(self, found: list[dict[str, Tensor]], labels: list[dict[str, Tensor]]) -> None:
        """Add a batch: boxes, scores and labels, and the labelled boxes and their labels, of each image."""
        for one, other in zip(found, labels, strict=True):
            self.detections.append(_rows(one["boxes"], one["labels"], one["scores"]))
            self.objects.append(_rows(other["boxes"], other["labels"], crowd=other.get("crowd")))

    def merge_state(self, incoming_state: Any) -> None:
        """Add the images of another."""
        for each in (self, incoming_state):
            each.match()
        self.detections += incoming_state.detections
        self.objects += incoming_state.objects
        self.matched += incoming_state.matched

    def reset(self) -> None:
        super().reset()
        self.detections, self.objects, self.matched = [], [], []

    def match(self) -> None:
        """Match the detections of images that are new."""
        new = slice(len(self.matched), None)
        self.matched += _matched(self.detections[new], self.objects[new], self.classes)

    def compute(self) -> dict[str, float]:
        """Both figures; 0 where nothing is labelled."""
        self.match()
        by_class = [_precisions([image[kind] for image in self.matched]) for kind in range(self.classes)]
        known = [precisions for precisions in by_class if precisions is not None]
        if not known:
            return {"map": 0.0, "map50": 0.0}
        return {"map": float(np.mean(known)), "map50": float(np.mean([precisions[0] for precisions in known]))}


def _matched(detections: list[Array], objects: list[Array], classes: int) -> list[list[Matches]]:
    """The matches of each image and class."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not detections:
        return []
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it works
        truth, found = COCO(), COCO()
        images = [{"id": number} for number in range(len(objects))]
        categories = [{"id": number} for number in range(classes)]
        for side, rows in ((truth, objects), (found, detections)):
            side.dataset = {"images": images, "categories": categories, "annotations": list(_annotations(rows))}
            side.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.params.maxDets = [MOST_DETECTIONS]
        evaluation.evaluate()
    by_class = [
        [_matches(entry, len(evaluation.params.iouThrs)) for entry in evaluation.evalImgs[start : start + len(images)]]
        for start in range(0, classes * len(images), len(images))
    ]
    return [list(image) for image in zip(*by_class, strict=True)]


def _matches(entry: dict[str, Any] | None, overlaps: int) -> Matches:
    """From pycocotools' entry of an image and class; None where it has neither objects nor detections."""
    if entry is None:
        nothing = np.zeros((overlaps, 0), bool)
        return Matches(np.zeros(0), nothing, nothing, 0)
    counted = entry["dtIgnore"] == 0
    right = (entry["dtMatches"] > 0) & counted
    return Matches(np.array(entry["dtScores"]), right, counted, int((np.asarray(entry["gtIgnore"]) == 0).sum()))


def _precisions(images: list[Matches]) -> Array | None:
    """Of a class ``(10, 101)``: at each overlap, the best precision at a recall or above; None without objects."""
    objects = sum(image.objects for image in images)
    if objects == 0:
        return None
    order = np.argsort(-np.concatenate([image.scores for image in images]), kind="mergesort")
    right, counted = (
        np.concatenate([getattr(image, name) for image in images], axis=1)[:, order] for name in ("right", "counted")
    )
    hits = np.cumsum(right, axis=1)
    precision = hits / np.maximum(np.cumsum(counted, axis=1), 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)  # of recalls that are never reached
    places = [np.searchsorted(row / objects, RECALLS, side="left") for row in hits]
    return np.take_along_axis(best, np.stack(places), axis=1)


def _rows(corners: Tensor, kinds: Tensor, scores: Tensor | None = None, crowd: Tensor | None = None) -> Array:
    """``(M, 7)``: x, y, width, height, class, score, and whether it is a crowd."""
    low, high = corners[:, :2].double().cpu(), corners[:, 2:].double().cpu()
    last = np.ones(len(corners)) if scores is None else scores.double().cpu().numpy()
    many = np.zeros(len(corners)) if crowd is None else crowd.double().cpu().numpy()
    return np.column_stack([low.numpy(), (high - low).numpy(), kinds.double().cpu().numpy(), last, many])


def _annotations(rows: list[Array]) -> Any:
    number = 0
    for image, boxes in enumerate(rows):
        for x, y, width, height, kind, score, crowd in boxes.tolist():
            number += 1
            yield {
                "id": number,
                "image_id": image,
                "category_id": int(kind),
                "bbox": [x, y, width, height],
                "area": width * height,
                "iscrowd": int(crowd),
                "score": score,
            }
