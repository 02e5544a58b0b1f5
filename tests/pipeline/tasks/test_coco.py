"""COCO's average precision: against pycocotools' own accumulation, on detections of every kind of fault."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.tasks.coco import BoxPrecision

CLASSES = 4


def scene(rng: np.random.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Objects of three classes of four, and detections: near them, twice, of other classes, and of nothing."""
    count = int(rng.integers(0, 6))
    low = rng.uniform(0, 60, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(6, 30, (count, 2))], 1)
    kinds = rng.integers(0, 3, count)
    found = np.concatenate([boxes + rng.normal(0, 2, boxes.shape), boxes + rng.normal(0, 4, boxes.shape)])
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    guessed = np.where(rng.uniform(size=2 * count) < 0.8, np.tile(kinds, 2), rng.integers(0, CLASSES, 2 * count))
    extra = np.concatenate([rng.uniform(0, 40, (3, 2)), rng.uniform(41, 90, (3, 2))], 1)
    return (
        {
            "boxes": torch.tensor(np.concatenate([found, extra])),
            "labels": torch.tensor(np.concatenate([guessed, [0, 1, 3]])),
            "scores": torch.tensor(rng.uniform(size=2 * count + 3).round(2)),  # some are equal
        },
        {"boxes": torch.tensor(boxes), "labels": torch.tensor(kinds)},
    )


def by_pycocotools(found: list[dict[str, Tensor]], labels: list[dict[str, Tensor]]) -> tuple[float, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def side(entries: list[dict[str, Tensor]]) -> Any:
        annotations = [
            {
                "id": 100 * image + place + 1,
                "image_id": image,
                "category_id": int(kind),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "score": float(entry["scores"][place]) if "scores" in entry else 1.0,
            }
            for image, entry in enumerate(entries)
            for place, ((x1, y1, x2, y2), kind) in enumerate(
                zip(entry["boxes"].tolist(), entry["labels"].tolist(), strict=True)
            )
        ]
        made = COCO()
        made.dataset = {
            "images": [{"id": image} for image in range(len(entries))],
            "categories": [{"id": kind} for kind in range(CLASSES)],
            "annotations": annotations,
        }
        made.createIndex()
        return made

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(side(labels), side(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


@pytest.mark.parametrize("seed", range(4))
def test_precision_equals_pycocotools_own_when_batches_and_merges_differ(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, labels = map(list, zip(*(scene(rng) for _ in range(30)), strict=True))
    expected = by_pycocotools(found, labels)
    whole = BoxPrecision(CLASSES)
    whole.update(found, labels)
    parts = [BoxPrecision(CLASSES) for _ in range(3)]
    for part, start in zip(parts, (0, 7, 20), strict=True):
        stop = {0: 7, 7: 20, 20: 30}[start]
        part.update(found[start:stop], labels[start:stop])
    for part in parts[1:]:
        parts[0].merge_state(part)
    for metric in (whole, parts[0]):
        computed = metric.compute()
        assert (computed["map"], computed["map50"]) == pytest.approx(expected, abs=1e-12)


def test_precision_is_zero_when_nothing_is_labelled_or_found() -> None:
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    metric = BoxPrecision(CLASSES)
    assert metric.compute() == {"map": 0.0, "map50": 0.0}
    metric.update([{**nothing, "scores": torch.zeros(0)}], [nothing])
    assert metric.compute() == {"map": 0.0, "map50": 0.0}
