"""COCO's average precision of boxes, as pycocotools computes it (https://cocodataset.org/#detection-eval)."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from torch import Tensor
from torchmetrics import Metric

from pipeline.core.arrays import Array


class BoxPrecision(Metric):
    """Mean average precision of detections: over IoU 0.50:0.95 (``map``), and at 0.50 (``map50``).

    torchmetrics' own needs torchvision, whose operators cannot be loaded beside this torch.

    Args:
        classes: How many there are; those without a labelled box count for nothing.
    """

    full_state_update = False
    detections: list[Array]
    objects: list[Array]

    def __init__(self, classes: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.classes = classes
        self.detections, self.objects = [], []

    def update(self, found: list[dict[str, Tensor]], labels: list[dict[str, Tensor]]) -> None:
        """Add a batch: boxes, scores and labels, and the labelled boxes and their labels, of each image."""
        for one, other in zip(found, labels, strict=True):
            self.detections.append(_rows(one["boxes"], one["labels"], one["scores"]))
            self.objects.append(_rows(other["boxes"], other["labels"], crowd=other.get("crowd")))

    def merge_state(self, incoming_state: Any) -> None:
        """Add the images of another."""
        self.detections += incoming_state.detections
        self.objects += incoming_state.objects

    def reset(self) -> None:
        super().reset()
        self.detections, self.objects = [], []

    def compute(self) -> dict[str, float]:
        """Both figures; 0 where nothing is labelled."""
        if not any(len(rows) for rows in self.objects):
            return {"map": 0.0, "map50": 0.0}
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):  # it prints as it works
            truth, found = COCO(), COCO()
            images = [{"id": number} for number in range(len(self.objects))]
            categories = [{"id": number} for number in range(self.classes)]
            for side, rows in ((truth, self.objects), (found, self.detections)):
                side.dataset = {"images": images, "categories": categories, "annotations": list(_annotations(rows))}
                side.createIndex()
            evaluation = COCOeval(truth, found, "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return {"map": max(0.0, float(evaluation.stats[0])), "map50": max(0.0, float(evaluation.stats[1]))}


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
