"""Pictures for the report: what the original and the optimized model say of a few evaluation samples."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from pipeline.core import Model
from pipeline.core.arrays import Array
from pipeline.data.preprocessing import stored_pixels
from pipeline.data.samples import SampleSet
from pipeline.report.model import BoxRecord, SampleRecord, ViewRecord
from pipeline.target import Exported
from pipeline.tasks.pictures import Show, View
from pipeline.tasks.prediction import Predict, predictor, session_predictor
from pipeline.tasks.task import Task

logger = logging.getLogger(__name__)

SHOWN = 6
"""Samples, evenly spaced over the evaluation set; nothing is chosen by them."""


def shown_samples(
    model: Model, exported: Sequence[Exported], samples: SampleSet, task: Task
) -> tuple[SampleRecord, ...]:
    """The records of a few samples; none where the task shows nothing, or the first input is no image.

    Args:
        exported: The first target that runs here predicts for the optimized model, or else its program does.
        samples: The evaluation set, with labels in the task's form.
    """
    if model.states or task.show is None or len(model.inputs[0].shape) != 3 or model.inputs[0].shape[0] not in (1, 3):
        return ()
    few = samples.take(SHOWN)
    batch = next(few.batches(SHOWN))
    images = stored_pixels(batch.inputs[0].numpy(), samples.preprocessing)
    said = [] if batch.labels is None else [("label", batch.labels)]
    said.append(("original, FP32", _predictions(task, predictor(model.reference), batch.inputs)))
    if model.history:
        name, predict = _optimized(model, exported)
        said.append((name, _predictions(task, predict, batch.inputs)))
    views = [[_record(title, task.show, each, model.classes) for each in found] for title, found in said]
    return tuple(
        SampleRecord(
            index=samples.indices.index(index),
            width=image.shape[2],
            height=image.shape[1],
            image=_png(image[0] if len(image) == 1 else image.transpose(1, 2, 0)),
            views=of_sample,
        )
        for index, image, of_sample in zip(few.indices, images, zip(*views, strict=True), strict=True)
    )


def _optimized(model: Model, exported: Sequence[Exported]) -> tuple[str, Predict]:
    """What the optimized model is called, and how it predicts: in the first target that runs here."""
    kind = "INT8" if model.quantized else "optimized"
    for item in exported:
        if item.optimized is not None and item.target.cannot_run() is None:
            try:
                return f"{kind}, {item.target.name}", session_predictor(item.target.load(item.optimized, threads=1))
            except Exception:  # the benchmark has said what is wrong
                logger.debug("%s shows no pictures", item.target.name, exc_info=True)
    return f"{kind}, program", predictor(model.module)


def _predictions(task: Task, predict: Predict, inputs: tuple[Tensor, ...]) -> Sequence[object]:
    found: Sequence[object] = task.predict(predict(inputs), inputs)
    return found


def _record(title: str, show: Show, said: object, classes: Sequence[str]) -> ViewRecord:
    view: View = show(said)
    return ViewRecord(
        title=title,
        overlay=None if view.overlay is None else _png(view.overlay),
        boxes=tuple(
            BoxRecord(
                corners=box.corners,
                label=classes[box.kind] if box.kind < len(classes) else str(box.kind),
                score=box.score,
            )
            for box in view.boxes
        ),
    )


def _png(values: Array) -> str:
    """An image ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4) uint8``."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
