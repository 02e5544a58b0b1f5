"""Evaluation: the metrics of a module on a sample set."""

from __future__ import annotations

import logging

from torch import nn

from pipeline.data.samples import SampleSet
from pipeline.machine.memory import affordable_batch, footprint
from pipeline.tasks.comparison import Comparison
from pipeline.tasks.prediction import SetPredictor, predictor

logger = logging.getLogger(__name__)


def evaluate(
    module: nn.Module, samples: SampleSet, *, reference: nn.Module | None = None, batch_size: int = 256
) -> dict[str, float]:
    """Top-1 on labelled samples and, where a reference is given, agreement with it.

    Args:
        batch_size: Samples that are run at once; fewer where memory is short.

    Raises:
        EdgewrightError: Not even one sample fits into memory.
        StageError: The module fails on a sample; see `SetPredictor`.
    """
    comparison = Comparison()
    predict = SetPredictor(module, samples)
    expect = predict if reference is None else SetPredictor(reference, samples)
    needs = footprint(lambda count: predictor(module)(samples.stand_ins(count)))
    size = affordable_batch(f"evaluation on {samples.name}", needs, min(batch_size, len(samples)))
    for batch in samples.batches(size):
        outputs = predict(batch.inputs)
        comparison.update(outputs, outputs if reference is None else expect(batch.inputs), batch.labels)
    metrics = comparison.metrics()
    if reference is None:
        metrics.pop("agreement", None)
    logger.debug("evaluated on %d samples of %s: %s", len(samples), samples.name, metrics)
    return metrics
