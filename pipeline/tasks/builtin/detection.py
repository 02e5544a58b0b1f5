"""Object detection: boxes and class scores per anchor; labels are boxes and classes per sample.

Three forms of outputs are read: one ``(N, 4 + classes, anchors)`` of centres, sizes and scores, as anchor-free heads
return; two ``(N, anchors, 4)``, ``(N, anchors, classes)`` of corners and scores; and those of DETR and YOLOS, which are
class scores ``(N, queries, classes)`` and centres and sizes ``(N, queries, 4)`` as shares of the image. All other
places are in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.core import MetricInfo
from pipeline.data.labels import boxes
from pipeline.tasks.coco import BoxPrecision
from pipeline.tasks.losses import TINY, binary_divergence, divergence, relative_error, relative_errors
from pipeline.tasks.pictures import Box, View
from pipeline.tasks.task import BinaryScores, Example, MetricSpec, Task, Tensors, misfit

LEAST_SCORE = 0.01
OVERLAP = 0.6
"""Of anchors; see `_detections`."""
CANDIDATES, MOST_BOXES = 300, 100
"""The best of an image before overlapping ones are removed, and after."""
SHOWN_SCORE = 0.4
"""Of boxes that a report draws."""


@dataclass(frozen=True, slots=True)
class _Form:
    """How outputs are read.

    Attributes:
        together: Whether one output holds both, with an anchor in each column.
        queries: Whether each place stands for one object, so that overlapping ones are different objects.
        no_object: Whether the last class says that there is no object, and the scores of all classes add up to 1.
        reading: What other scores are.
        size: Height and width of the image in pixels.
    """

    together: bool
    queries: bool
    no_object: bool
    reading: BinaryScores
    size: tuple[int, int]

    def heads(self, outputs: Tensors) -> tuple[Tensor, Tensor]:
        """Boxes ``(N, anchors, 4)`` in pixels, and raw scores ``(N, anchors, classes)``."""
        if self.queries:
            height, width = self.size
            return outputs[1] * torch.tensor([width, height, width, height]).to(outputs[1]), outputs[0]
        if self.together:
            return outputs[0][:, :4].transpose(1, 2), outputs[0][:, 4:].transpose(1, 2)
        return outputs[0], outputs[1]

    def corners(self, places: Tensor) -> Tensor:
        """Boxes as corners inside the image."""
        height, width = self.size
        corners = _corners(places) if self.together or self.queries else places
        return torch.minimum(corners.float().clamp_min(0), torch.tensor([width, height, width, height]))

    def probabilities(self, scores: Tensor) -> Tensor:
        """Of each class."""
        return scores.float().softmax(2)[..., :-1] if self.no_object else self.reading.probabilities(scores)


def task(example: Example) -> Task:
    """COCO's mean average precision, over IoU 0.50 to 0.95 and at 0.50."""
    form = _form_of(example)
    height, width = form.size
    classes = form.probabilities(form.heads(example.outputs)[1]).shape[2]
    overlap = 1.0 if form.queries else OVERLAP

    def predict(outputs: Tensors, _: Tensors) -> list[dict[str, Tensor]]:
        places, scores = form.heads(outputs)
        found = zip(form.corners(places), form.probabilities(scores), strict=True)
        return [_detections(one, other, overlap) for one, other in found]

    def terms(student: Tensors, teacher: Tensors, temperature: float) -> list[Tensor]:
        """Boxes count as much as the teacher is sure of an object there; scores are compared one by one."""
        (places, scores), (expected_places, expected) = form.heads(student), form.heads(teacher)
        sure = form.probabilities(expected).amax(2, keepdim=True)
        distances = functional.smooth_l1_loss(places, expected_places, reduction="none", beta=1.0) * sure
        located = distances.sum() / (4 * sure.sum()).clamp_min(TINY) / (0.05 * max(height, width))
        rest = relative_errors(student[2:], teacher[2:], temperature)
        return [_scored(form, scores, expected, temperature), located, *rest]

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


def _scored(form: _Form, scores: Tensor, expected: Tensor, temperature: float) -> Tensor:
    """How far a student's scores are from its teacher's."""
    if form.no_object:
        return divergence(scores, expected, temperature, 2)
    if form.reading.are_probabilities:
        return relative_error(scores, expected)
    return binary_divergence(scores, expected, temperature)


def _named(name: str) -> Any:
    return lambda found: float(found[name])


def _form_of(example: Example) -> _Form:
    """The form of a model's outputs.

    Raises:
        RecipeError: They have none of the three.
    """
    size, first, together = example.image_size, example.first, len(example.outputs) == 1
    if together:
        if first.ndim != 3 or first.shape[1] < 5 or first.shape[1] >= first.shape[2]:
            raise misfit("detection needs one output (N, 4 + classes, anchors), or boxes and scores", first)
        return _Form(True, False, False, BinaryScores.like(first[:, 4:]), size)
    second = example.outputs[1]
    if _are_shares(second) and first.ndim == 3 and first.shape[2] > 1 and not _are_shares(first):
        no_object = example.classes != first.shape[2]
        return _Form(False, True, no_object, BinaryScores.like(first), size)
    if first.ndim != 3 or first.shape[2] != 4 or second.ndim != 3:
        needs = "detection needs boxes (N, anchors, 4) and scores (N, anchors, classes) as outputs"
        raise misfit(f"{needs}, or logits (N, queries, classes) and boxes from 0 to 1 (N, queries, 4)", first)
    return _Form(False, False, False, BinaryScores.like(second), size)


def _are_shares(output: Tensor) -> bool:
    """Whether an output can be boxes in shares of the image."""
    return output.ndim == 3 and output.shape[2] == 4 and bool(((output >= 0) & (output <= 1)).all())


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


def _detections(corners: Tensor, scores: Tensor, overlap: float) -> dict[str, Tensor]:
    """The boxes of an image ``(A, 4)`` that remain by score ``(A, classes)`` and overlap, the best first.

    Args:
        overlap: Intersection over union from which two boxes of one class are taken for the same object.
    """
    from kornia.geometry.bbox import nms

    best, candidates = scores.flatten().topk(min(CANDIDATES, scores.numel()))
    candidates = candidates[best >= LEAST_SCORE]
    anchors, kinds = candidates.div(scores.shape[1], rounding_mode="floor"), candidates % scores.shape[1]
    found = corners[anchors]
    real = ((found[:, 2:] - found[:, :2]) > 0).all(1)
    found, kinds, kept_scores = found[real], kinds[real], scores.flatten()[candidates][real]
    apart = kinds[:, None].float() * (corners.max() + 1) if len(found) else 0.0  # classes do not suppress each other
    kept = nms(found + apart, kept_scores, overlap)[:MOST_BOXES] if len(found) else torch.zeros(0, dtype=torch.long)
    return {"boxes": found[kept], "scores": kept_scores[kept], "labels": kinds[kept]}
