"""The judge: how closely an integer network matches its float network on held-out samples."""

from __future__ import annotations

from torch import nn

from pipeline.data.samples import SampleSet
from pipeline.machine.memory import affordable_batch, footprint, require_memory
from pipeline.recipe import Budget
from pipeline.tasks.comparison import Comparison
from pipeline.tasks.prediction import predictor


class Judge:
    """Judges networks against a float module on held-out samples.

    The metric is a ratio: top-1 if the samples are labelled and the budget asks for it, otherwise the share of samples
    with the same largest output as the float module. For a module that does not classify it is ``1 - noise / signal``.

    Attributes:
        metric: ``top1``, ``agreement`` or ``signal``.
        baseline: The float module's metric.
        max_drop: How far the metric may fall: the budget's share, but at least one sample, which may be chance.
    """

    def __init__(self, module: nn.Module, samples: SampleSet, budget: Budget, batch_size: int) -> None:
        self.samples, self._module, self._budget = samples, module, budget
        predict = predictor(module)
        kept = sum(output.nbytes for output in predict(next(samples.take(1).batches(1)).inputs))
        fix = "limit the training samples in the recipe, of which an eighth is held out"
        require_memory(f"quantize: outputs of {len(samples)} held-out samples", kept * len(samples), fix=fix)
        needs = footprint(lambda count: predict(samples.stand_ins(count)))
        self.batch_size = affordable_batch("quantize: held-out samples", needs, min(batch_size, len(samples)))
        self._reference = [predict(batch.inputs) for batch in samples.batches(self.batch_size)]
        compared = self._compare(module)
        self.metric = "top1" if compared.top1 is not None and budget.metric == "top1" else "agreement"
        if not compared.metrics():
            self.metric = "signal"
        self.baseline = self._metric(compared)
        self.max_drop = budget.max_drop if self.metric == "signal" else max(budget.max_drop, 1 / len(samples))

    def __call__(self, network: nn.Module) -> tuple[float, float]:
        """Metric and SQNR in dB of all outputs."""
        compared = self._compare(network)
        return self._metric(compared), compared.sqnr_db

    def metric_of(self, network: nn.Module) -> float:
        """The metric alone."""
        return self(network)[0]

    def on(self, count: int) -> Judge:
        """A judge that uses at most this many of the samples."""
        return Judge(self._module, self.samples.take(count), self._budget, self.batch_size)

    def _compare(self, module: nn.Module) -> Comparison:
        comparison, predict = Comparison(), predictor(module)
        for batch, reference in zip(self.samples.batches(self.batch_size), self._reference, strict=True):
            comparison.update(predict(batch.inputs), reference, batch.labels)
        return comparison

    def _metric(self, compared: Comparison) -> float:
        if self.metric == "signal":
            return max(0.0, 1 - 10 ** (-compared.sqnr_db / 10))
        return compared.metrics()[self.metric]
