"""Object detection: boxes and class scores per anchor; labels are boxes and classes per sample.

Two forms of outputs are read: one ``(N, 4 + classes, anchors)`` of centres, sizes and scores, as anchor-free heads
return, and two ``(N, anchors, 4)``, ``(N, anchors, classes)`` of corners and scores. Places are in pixels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.core import MetricInfo
from pipeline.data.labels import boxes
from pipeline.tasks.coco import BoxPrecision
from pipeline.tasks.losses import TINY, binary_divergence, relative_error, relative_errors
from pipeline.tasks.pictures import Box, View
from pipeline.tasks.task import BinaryScores, Example, MetricSpec, Task, Tensors, misfit

LEAST_SCORE = 0.01
OVERLAP = 0.6
"""Intersection over union from which two boxes of one class are taken for the same object."""
CANDIDATES, MOST_BOXES = 300, 100
"""The best of an image before overlapping ones are removed, and after."""
SHOWN_SCORE = 0.4
"""Of boxes that a report draws."""


def task(example: Example) -> Task:
    """COCO's mean average precision, over IoU 0.50 to 0.95 and at 0.50."""
    height, width = example.image_size
    together = len(example.outputs) == 1
    _require_heads(example)
    raw = example.first[:, 4:] if together else example.outputs[1]
    reading = BinaryScores.like(raw)
    classes = raw.shape[1 if together else 2]

    def heads(outputs: Tensors) -> tuple[Tensor, Tensor]:
        """Boxes ``(N, anchors, 4)`` and raw scores ``(N, anchors, classes)``."""
        if not together:
            return outputs[0], outputs[1]
        return outputs[0][:, :4].transpose(1, 2), outputs[0][:, 4:].transpose(1, 2)

    def predict(outputs: Tensors, _: Tensors) -> list[dict[str, Tensor]]:
        places, scores = heads(outputs)
        corners = _corners(places) if together else places
        limit = torch.tensor([width, height, width, height])
        corners = torch.minimum(corners.float().clamp_min(0), limit)
        return [_detections(one, other) for one, other in zip(corners, reading.probabilities(scores), strict=True)]

    def terms(student: Tensors, teacher: Tensors, temperature: float) -> list[Tensor]:
        """Boxes count as much as the teacher is sure of an object there; scores are compared one by one."""
        (places, scores), (expected_places, expected) = heads(student), heads(teacher)
        sure = reading.probabilities(expected).amax(2, keepdim=True)
        distances = functional.smooth_l1_loss(places, expected_places, reduction="none", beta=1.0) * sure
        located = distances.sum() / (4 * sure.sum()).clamp_min(TINY) / (0.05 * max(height, width))
        rest = relative_errors(student[2:], teacher[2:], temperature)
        return [scored(scores, expected, temperature), located, *rest]

    def scored(scores: Tensor, expected: Tensor, temperature: float) -> Tensor:
        if reading.are_probabilities:
            return relative_error(scores, expected)
        return binary_divergence(scores, expected, temperature)

    precision = partial(BoxPrecision, classes=classes, sync_on_compute=False)
    return Task(
        name="detection",
        labels=boxes(classes, height, width),
        metrics=(
            MetricSpec(info=MetricInfo(name="map", title="mAP 50:95"), make=precision, pick=_named("map")),
            MetricSpec(info=MetricInfo(name="map50", title="mAP 50"), make=precision, pick=_named("map50")),
        ),
        predict=predict,
        terms=terms,
        show=_show,
    )


def _named(name: str) -> Any:
    return lambda found: float(found[name])


def _require_heads(example: Example) -> None:
    first = example.first
    if len(example.outputs) == 1:
        if first.ndim != 3 or first.shape[1] < 5 or first.shape[1] >= first.shape[2]:
            raise misfit("detection needs one output (N, 4 + classes, anchors), or boxes and scores", first)
    elif first.ndim != 3 or first.shape[2] != 4 or example.outputs[1].ndim != 3:
        raise misfit("detection needs boxes (N, anchors, 4) and scores (N, anchors, classes) as outputs", first)


def _show(found: dict[str, Tensor]) -> View:
    """The boxes that the model is sure of, or those of a label."""
    scores = found["scores"].tolist() if "scores" in found else [None] * len(found["labels"])
    return View(
        boxes=tuple(
            Box(corners=tuple(corners), kind=kind, score=score)
            for corners, kind, score in zip(found["boxes"].tolist(), found["labels"].tolist(), scores, strict=True)
            if score is None or score >= SHOWN_SCORE
        )
    )


def _corners(places: Tensor) -> Tensor:
    """Centre, width and height as two corners."""
    centre, size = places[..., :2], places[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def _detections(corners: Tensor, scores: Tensor) -> dict[str, Tensor]:
    """The boxes of an image ``(A, 4)`` that remain by score ``(A, classes)`` and overlap, the best first."""
    from kornia.geometry.bbox import nms

    best, candidates = scores.flatten().topk(min(CANDIDATES, scores.numel()))
    candidates = candidates[best >= LEAST_SCORE]
    anchors, kinds = candidates.div(scores.shape[1], rounding_mode="floor"), candidates % scores.shape[1]
    found = corners[anchors]
    real = ((found[:, 2:] - found[:, :2]) > 0).all(1)
    found, kinds, kept_scores = found[real], kinds[real], scores.flatten()[candidates][real]
    apart = kinds[:, None].float() * (corners.max() + 1) if len(found) else 0.0  # classes do not suppress each other
    kept = nms(found + apart, kept_scores, OVERLAP)[:MOST_BOXES] if len(found) else torch.zeros(0, dtype=torch.long)
    return {"boxes": found[kept], "scores": kept_scores[kept], "labels": kinds[kept]}
