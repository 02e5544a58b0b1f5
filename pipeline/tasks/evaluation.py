"""Evaluation: a task's metrics of a module on a sample set."""

from __future__ import annotations

import logging

from torch import nn

from pipeline.data.samples import SampleSet
from pipeline.machine.memory import affordable_batch, footprint
from pipeline.tasks.lookup import for_task, suggested_for
from pipeline.tasks.prediction import SetPredictor, predictor
from pipeline.tasks.scores import Scores
from pipeline.tasks.task import Task

logger = logging.getLogger(__name__)


def evaluate(
    module: nn.Module,
    samples: SampleSet,
    task: Task | None = None,
    *,
    reference: nn.Module | None = None,
    batch_size: int = 256,
) -> dict[str, float]:
    """The metrics that labels allow and, where a reference is given, those that compare with it.

    Args:
        task: What the module is for; suggested by its outputs and the labels when absent.
        batch_size: Samples that are run at once; fewer where memory is short.

    Raises:
        EdgewrightError: Not even one sample fits into memory.
        StageError: The module fails on a sample; see `SetPredictor`.
    """
    task = task or suggested_for(module, samples)
    samples = for_task(samples, task)
    scores = Scores(task, labelled=samples.labelled, compared=reference is not None)
    predict = SetPredictor(module, samples)
    expect = predict if reference is None else SetPredictor(reference, samples)
    needs = footprint(lambda count: predictor(module)(samples.stand_ins(count)))
    size = affordable_batch(f"evaluation on {samples.name}", needs, min(batch_size, len(samples)))
    for batch in samples.batches(size):
        outputs = predict(batch.inputs)
        scores.update(batch.inputs, outputs, outputs if reference is None else expect(batch.inputs), batch.labels)
    metrics = scores.values()
    logger.debug("evaluated on %d samples of %s: %s", len(samples), samples.name, metrics)
    return metrics
