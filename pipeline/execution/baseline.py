"""The original on the evaluation set, before any stage: no better than chance, or not as good as it is known to be."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.core import MetricInfo, RecipeError, did_you_mean
from pipeline.data.labels import Labels
from pipeline.data.samples import SampleSet
from pipeline.machine.memory import affordable_batch, footprint
from pipeline.tasks.differences import Paired, interval
from pipeline.tasks.prediction import SetPredictor, predictor
from pipeline.tasks.task import MetricSpec, Predictions, Task

FIRST, LOOKED_AT = 32, 128
"""Samples on which a model is compared with chance: at first, and at most; fewer where predictions are large."""
OFTEN = 0.05
"""The share of shuffles that must not do as well."""
ENOUGH = 100
"""Samples from which on chance stops a run; with fewer it is a warning."""
FEWEST = 8
"""Samples below which nothing is said of chance."""
AT_ONCE = 16
MAX_VALUES = 1 << 24
"""Of the outputs of these samples."""
SHUFFLES, FEW_SHUFFLES = 99, 19
"""Of the labels: for shares of samples, which takes an instant, and for other metrics."""
LEAST = 0.01
"""How far a metric may always be from what is expected: a percentage point, or one percent of what is no ratio."""
CAUSES = (
    "check the weights (are they those of the trained model?), data.preprocessing (scale, mean, std, layout), the "
    "order of model.classes, and RGB or BGR"
)

logger = logging.getLogger(__name__)


def check_baseline(
    expected: Mapping[str, float] | None,
    module: nn.Module,
    task: Task,
    evaluation: SampleSet,
    *,
    own_metrics: bool,
    doubts: Sequence[str] = (),
) -> str | None:
    """Hold the original to what is expected of it; where nothing is said, to be better than chance.

    Chance is what a metric gives with the labels of other samples: a model for which they do as well has learnt nothing
    of them, or is given inputs that it does not know.

    Args:
        expected: Values of metrics; none at all asks for no check.
        doubts: What is doubtful about the samples already: likely causes, named first.
        own_metrics: Whether the metrics are the user's, of which nothing is known: they never stop a run.

    Returns:
        A warning, where chance cannot be told from the model's metric with so few samples.

    Raises:
        RecipeError: The model is no better than chance, or off what is expected; names the likely causes.
    """
    if expected is not None:
        _require_expected(expected, module, task, evaluation, "; ".join((*doubts, CAUSES)))
        return None
    spec = next((spec for spec in task.usable(labelled=evaluation.labelled) if spec.needs_labels), None)
    if spec is None or len(evaluation) < FEWEST:
        return None
    try:
        value, count, by_chance = _against_chance(spec, module, task, evaluation)
    except Exception:
        if not own_metrics:
            raise
        logger.debug("%s was not compared with chance", spec.name, exc_info=True)  # it may need labels as they come
        return None
    logger.debug("%s of the original on %d samples: %g; by chance: %s", spec.name, count, value, by_chance)
    if not by_chance:
        return None
    shown = f"{spec.info.title} of the original is {_shown(value, spec.info)} on {count} evaluation samples"
    problem = f"{shown}, no better than with the labels of other samples, which is chance"
    whole, _, _ = interval(spec, _measured(module, task, evaluation))
    go_on = f"set model: {{expect: {{{spec.name}: {_rounded(whole)}}}}} to go on with such a model"
    if count < ENOUGH or own_metrics:
        return f"{problem}. With so few samples that may be an accident; if not, {CAUSES}; or {go_on}"
    raise RecipeError(problem, where="model", fix="; ".join((*doubts, f"{CAUSES}; or {go_on}")))


def _require_expected(
    expected: Mapping[str, float], module: nn.Module, task: Task, evaluation: SampleSet, causes: str
) -> None:
    known = {spec.name: spec for spec in task.usable(labelled=evaluation.labelled) if spec.needs_labels}
    for name in expected:
        if name not in known:
            needs = "" if evaluation.labelled else ", and the evaluation set has no labels"
            problem = f"no metric of the task {task.name} that is compared with labels{needs}"
            raise RecipeError(
                f"is {problem}; {did_you_mean(name, known)}",
                where=f"model.expect.{name}",
                fix="name a metric of the task, or remove it",
            )
    if not expected:
        return
    paired = _measured(module, task, evaluation)
    for name, wanted in expected.items():
        info = known[name].info
        value, low, high = interval(known[name], paired)
        least = LEAST if info.unit == "ratio" else LEAST * abs(wanted)
        if not min(low, value - least) <= wanted <= max(high, value + least):
            raise RecipeError(
                f"{info.title} of the original is {_shown(value, info)} on {len(evaluation)} evaluation samples "
                f"(95 %: {_shown(low, info)} to {_shown(high, info)}), not {_shown(wanted, info)}",
                where=f"model.expect.{name}",
                fix=f"{causes}; or correct model.expect",
            )


def _measured(module: nn.Module, task: Task, samples: SampleSet) -> Paired:
    """What a module does on each block of samples."""
    paired = Paired(task, len(samples), labelled=samples.labelled)
    predict = SetPredictor(module, samples)
    needs = footprint(lambda count: predictor(module)(samples.stand_ins(count)))
    size = affordable_batch(f"evaluation on {samples.name}", needs, min(256, len(samples)))
    for batch in samples.batches(size):
        outputs = predict(batch.inputs)
        paired.update(batch.inputs, outputs, outputs, batch.labels)
    return paired


def _against_chance(spec: MetricSpec, module: nn.Module, task: Task, samples: SampleSet) -> tuple[float, int, bool]:
    """The metric of some samples, their number, and whether shuffled labels often give as good a value (5 %).

    A few samples are enough for most models, for which no shuffle is as good, and metrics may be slow: only a model
    that these leave in doubt is asked for more.
    """
    for limit, often in ((FIRST, 0.0), (LOOKED_AT, OFTEN)):
        predictions, labels, count = _some(module, task, samples, limit)
        value = _value(spec, predictions, labels)
        by_chance = math.isfinite(value) and _reached(value, spec, predictions, labels, count, often)
        if not by_chance:
            break
    return value, count, by_chance


def _reached(
    value: float, spec: MetricSpec, predictions: Predictions, labels: Labels, count: int, often: float
) -> bool:
    """Whether more than this share of shuffles gives as good a value; the labels as they are count as one."""
    random = np.random.default_rng(0)
    shuffles = FEW_SHUFFLES if spec.right is None else SHUFFLES
    better = 0
    for _ in range(shuffles):
        other = _value(spec, predictions, _ordered(labels, random.permutation(count)))
        better += other >= value if spec.info.higher_is_better else other <= value
        if better and (1 + better) / (1 + shuffles) > often:
            return True
    return False


@torch.no_grad()
def _some(module: nn.Module, task: Task, samples: SampleSet, limit: int) -> tuple[Predictions, Labels, int]:
    """Predictions and labels of as many samples as fit, up to a limit."""
    predict = SetPredictor(module, samples)
    one = predict(next(samples.take(1).batches(1)).inputs)
    room = MAX_VALUES // max(1, sum(output.numel() for output in one))
    few = samples.take(max(FEWEST, min(limit, room)))
    batches = list(few.batches(AT_ONCE))
    predict = SetPredictor(module, few)
    outputs = [predict(batch.inputs) for batch in batches]
    joined = tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))
    inputs = tuple(torch.cat(parts) for parts in zip(*(batch.inputs for batch in batches), strict=True))
    labels: list[Any] = [batch.labels for batch in batches]
    together = torch.cat(labels) if _stackable(labels) else [entry for each in labels for entry in each]
    return task.predict(joined, inputs), together, len(few)


def _stackable(labels: Sequence[Labels]) -> bool:
    return all(isinstance(each, Tensor) and each.shape[1:] == labels[0].shape[1:] for each in labels)


def _ordered(labels: Labels, order: Any) -> Labels:
    return labels[torch.from_numpy(order)] if isinstance(labels, Tensor) else [labels[place] for place in order]


def _value(spec: MetricSpec, predictions: Predictions, labels: Labels) -> float:
    if spec.right is not None:
        return float(spec.right(predictions, labels).double().mean())
    metric = spec.make()
    spec.update(metric, predictions, labels)
    return spec.pick(metric.compute())


def _shown(value: float, info: MetricInfo) -> str:
    return f"{100 * value:.1f} %" if info.unit == "ratio" else f"{value:.4g} {info.unit}".strip()


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
