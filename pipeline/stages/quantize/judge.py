"""The judge: how closely an integer network matches its float network on held-out samples, by the task's metrics."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from pipeline.core import StageError, did_you_mean
from pipeline.data.samples import SampleSet
from pipeline.machine.memory import affordable_batch, footprint, require_memory
from pipeline.recipe import Budget
from pipeline.tasks.comparison import Comparison
from pipeline.tasks.lookup import measurable
from pipeline.tasks.prediction import predictor
from pipeline.tasks.scores import Scores
from pipeline.tasks.task import MetricSpec, Task

TINY = 1e-12
ANY_MODEL = ("top1", "agreement")
"""Metrics of classifiers that stand for the task's first one where a model is no classifier, or has no labels."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a network reached.

    Attributes:
        metric: The first budget's metric, in its own unit.
        budget_used: The largest share of any budget that is used up: 1 is all of it, and below 0 the network is better
            than the float one.
        sqnr_db: Of all outputs together.
        outputs_db: Of each output.
    """

    metric: float
    budget_used: float
    sqnr_db: float
    outputs_db: tuple[float, ...] = ()

    @property
    def within_budget(self) -> bool:
        """Whether every budget is kept."""
        return self.budget_used <= 1 + 1e-9  # binary fractions


class Judge:
    """Judges networks against a float module on held-out samples.

    Attributes:
        spec: The first budget's metric or, where these samples have no labels, the first that compares with the
            float module.
        baseline: The float module's value of it.
    """

    def __init__(
        self, module: nn.Module, samples: SampleSet, task: Task, budget: tuple[Budget, ...], batch_size: int
    ) -> None:
        self.samples, self._module, self._asked, self._budget = samples, module, task, budget
        self._task = measurable(task, module, samples)
        predict = predictor(module)
        kept = sum(output.nbytes for output in predict(next(samples.take(1).batches(1)).inputs))
        fix = "limit the training samples in the recipe, of which an eighth is held out"
        require_memory(f"quantize: outputs of {len(samples)} held-out samples", kept * len(samples), fix=fix)
        needs = footprint(lambda count: predict(samples.stand_ins(count)))
        self.batch_size = affordable_batch("quantize: held-out samples", needs, min(batch_size, len(samples)))
        self._reference = [predict(batch.inputs) for batch in samples.batches(self.batch_size)]
        baselines, _ = self._measure(module)
        self._limits = [self._limit(spec, each, baselines) for spec, each in self._budgets()]
        self.spec, self.baseline, _ = self._limits[0]

    def __call__(self, network: nn.Module) -> Score:
        """The budgets' metrics, and how far all outputs are from the float module's."""
        values, compared = self._measure(network)
        used = [
            spec.info.drop(before, values[spec.name]) / max(allowed, TINY)
            if math.isfinite(values[spec.name])
            else math.inf
            for spec, before, allowed in self._limits
        ]
        outputs = tuple(output.sqnr_db for output in compared.outputs)
        return Score(values[self.spec.name], max(used), compared.sqnr_db, outputs)

    @property
    def rises(self) -> bool:
        """Whether more of the metric is better."""
        return self.spec.info.higher_is_better

    def metric_of(self, network: nn.Module) -> float:
        """The metric alone."""
        return self(network).metric

    def on(self, count: int) -> Judge:
        """A judge that uses at most this many of the samples."""
        return Judge(self._module, self.samples.take(count), self._asked, self._budget, self.batch_size)

    def _budgets(self) -> list[tuple[MetricSpec, Budget]]:
        """Each budget's metric or, where these samples do not allow it, the first that they allow.

        A limit in another unit than a ratio says nothing of another metric, so that one has the usual limit.
        """
        usable = self._task.usable(labelled=self.samples.labelled)
        named, known = {spec.name: spec for spec in usable}, {spec.name: spec for spec in self._asked.metrics}
        found = []
        for budget in self._budget:
            name = budget.metric or self._asked.metrics[0].name
            if name not in (*known, *ANY_MODEL):
                problem = f"there is no metric {name!r}; {did_you_mean(name, list(known))}"
                raise StageError(problem, where="budget.metric", fix=f"use one of {', '.join(known)}")
            is_ratio = name not in known or known[name].info.unit == "ratio"
            found.append((named[name], budget) if name in named else (usable[0], budget if is_ratio else Budget()))
        return found

    def _limit(self, spec: MetricSpec, budget: Budget, baselines: dict[str, float]) -> tuple[MetricSpec, float, float]:
        """A metric, the float module's value, and how much worse it may get: one sample, at least."""
        baseline = baselines[spec.name]
        allowed = spec.info.allowed(baseline, budget.max_drop, budget.max_drop_relative)
        return spec, baseline, allowed if spec.right is None else max(allowed, 1 / len(self.samples))

    def _measure(self, module: nn.Module) -> tuple[dict[str, float], Comparison]:
        scores, comparison = Scores(self._task, labelled=self.samples.labelled), Comparison(self._task.class_axis)
        predict = predictor(module)
        for batch, reference in zip(self.samples.batches(self.batch_size), self._reference, strict=True):
            outputs = predict(batch.inputs)
            scores.update(batch.inputs, outputs, reference, batch.labels)
            comparison.update(outputs, reference)
        return scores.values(), comparison
