"""The quantize stage: from a float module to one quantized program that every target lowers."""

from __future__ import annotations

import time
from dataclasses import asdict

from torch import nn

from pipeline.core import ModelArtifact, StageRecord
from pipeline.data import SampleSet
from pipeline.metrics import Comparison, predictor
from pipeline.program import count_macs, count_parameters
from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.quantize.calibration import calibrate, convert
from pipeline.stages.quantize.canonical import canonical_graph
from pipeline.stages.quantize.cost import integer_share
from pipeline.stages.quantize.search import CalibrationConfig, search


def quantize(
    artifact: ModelArtifact,
    config: QuantizeConfig,
    data: SampleSet,
    *,
    budget: Budget,
    held_out: SampleSet | None = None,
    seed: int = 0,
) -> ModelArtifact:
    """Quantize a float module to static int8, calibrated on real samples.

    Args:
        data: Calibration samples, unlabelled or not.
        budget: How far the metric on the held-out samples may fall below the float module's.
        held_out: Samples to choose the configuration by; a quarter of ``data`` where there are none.
        seed: Draws that quarter.

    Raises:
        DataError: A sample holds NaN or infinity.
        StageError: The module cannot be captured.
    """
    started = time.perf_counter()
    if held_out is None:
        data, held_out = data.split(max(1, len(data) // 4), seed) if len(data) > 1 else (data, data)
    graph = canonical_graph(artifact)
    calibrated = calibrate(graph, data, batch_size=config.batch_size, skip=config.skip)
    calibration_s = time.perf_counter() - started

    judge = Judge(artifact.module, held_out, budget, config.batch_size)
    program, chosen, trials = search(
        [CalibrationConfig(method, config.bias_correction) for method in config.observers],
        lambda trial: convert(calibrated, method=trial.method, bias_correction=trial.bias_correction),
        judge,
        baseline=judge.baseline,
        max_drop=budget.max_drop,
    )
    record = StageRecord(
        stage="quantize",
        config=config.model_dump(mode="json"),
        duration_s=time.perf_counter() - started,
        parameters=count_parameters(program),
        macs=count_macs(artifact.module, artifact.inputs),
        skipped=calibrated.scheme.skipped,
        details={
            "int8_macs_ratio": integer_share(program, artifact.inputs),
            "parameter_sets": len(set(calibrated.scheme.roots.values())),
            "float_kernels": calibrated.scheme.float_kernels,
            "calibration_samples": len(data),
            "calibration_s": calibration_s,
            "held_out": {"samples": len(held_out), "metric": judge.metric, "float": judge.baseline},
            "trials": [asdict(trial) for trial in trials],
            "chosen": asdict(chosen),
        },
    )
    return artifact.after(program, record, quantized=True)


class Judge:
    """Judges programs against the float module on held-out samples.

    The metric, a ratio, is top-1 where the samples are labelled and the budget asks for it; else the share of samples
    whose largest output is the float module's; and for a module that does not classify ``1 - noise / signal``.
    """

    def __init__(self, module: nn.Module, samples: SampleSet, budget: Budget, batch_size: int) -> None:
        self._samples, self._batch_size = samples, batch_size
        predict = predictor(module)
        self._reference = [predict(batch.inputs) for batch in samples.batches(batch_size)]
        compared = self._compare(module)
        self.metric = "top1" if compared.top1 is not None and budget.metric == "top1" else "agreement"
        if not compared.metrics():
            self.metric = "signal"
        self.baseline = self._metric(compared)

    def __call__(self, program: nn.Module) -> tuple[float, float]:
        """Metric and SQNR in dB of all outputs."""
        compared = self._compare(program)
        return self._metric(compared), compared.sqnr_db

    def _compare(self, module: nn.Module) -> Comparison:
        comparison, predict = Comparison(), predictor(module)
        for batch, reference in zip(self._samples.batches(self._batch_size), self._reference, strict=True):
            comparison.update(predict(batch.inputs), reference, batch.labels)
        return comparison

    def _metric(self, compared: Comparison) -> float:
        if self.metric == "signal":
            return max(0.0, 1 - 10 ** (-compared.sqnr_db / 10))
        return compared.metrics()[self.metric]
