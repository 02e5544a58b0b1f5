"""The quantize stage: from a float module to one quantized program that every target lowers."""

from __future__ import annotations

import time
from dataclasses import asdict

from torch import nn
from torch.fx import GraphModule

from pipeline.core import ModelArtifact, SkippedLayer, StageRecord
from pipeline.data import SampleSet
from pipeline.metrics import Comparison, predictor
from pipeline.program import count_macs, count_parameters
from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.quantize.annotator import plan
from pipeline.stages.quantize.calibration import calibrate, convert, prepare
from pipeline.stages.quantize.canonical import canonical_graph
from pipeline.stages.quantize.correction import BiasCorrection
from pipeline.stages.quantize.cost import integer_share
from pipeline.stages.quantize.equalisation import equalised, input_peaks, pairs
from pipeline.stages.quantize.search import CalibrationConfig, Found, better, search
from pipeline.stages.quantize.sensitivity import Sensitivity, sensitivities


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
    batch_size = config.batch_size
    calibrated = calibrate(canonical_graph(artifact), data, batch_size=batch_size)
    calibration_s = time.perf_counter() - started
    equal = calibrated
    judge = Judge(artifact.module, held_out, budget, batch_size)

    def build(trial: CalibrationConfig) -> GraphModule:
        source = equal if trial.equalised else calibrated
        skip = (*config.skip, *trial.float_layers)
        return convert(prepare(source, method=trial.method, bias_correction=trial.bias_correction, skip=skip))

    def run(configs: list[CalibrationConfig], *, stop_when_met: bool) -> Found:
        return search(
            configs, build, judge, baseline=judge.baseline, max_drop=budget.max_drop, stop_when_met=stop_when_met
        )

    corrections: tuple[BiasCorrection, ...] = ("empirical", "analytic") if config.bias_correction else ("none",)
    candidates = [CalibrationConfig(method, correction) for method in config.observers for correction in corrections]
    found = run(candidates, stop_when_met=False)
    if config.equalisation and pairs(calibrated.graph):
        peaks = input_peaks(calibrated.graph, calibrated.inputs)
        equal = calibrate(equalised(calibrated.graph, peaks), data, batch_size=batch_size)
        tried = [CalibrationConfig(found.config.method, correction, equalised=True) for correction in corrections]
        found = better(found, run(tried, stop_when_met=False))
    ranking: list[Sensitivity] = []
    if config.sensitivity or (config.mixed_precision and not found.chosen.within_budget):
        source = equal if found.config.equalised else calibrated
        chosen = prepare(source, method=found.config.method, bias_correction="none", skip=config.skip)
        some = held_out.take(config.sensitivity_samples)
        ranking = sensitivities(chosen, [batch.inputs for batch in some.batches(batch_size)])
    if config.mixed_precision and not found.chosen.within_budget:
        found = better(found, run(fewer_float_layers(found.config, ranking), stop_when_met=True))

    scheme = plan(calibrated.graph, (*config.skip, *found.config.float_layers))
    record = StageRecord(
        stage="quantize",
        config=config.model_dump(mode="json"),
        duration_s=time.perf_counter() - started,
        parameters=count_parameters(found.program),
        macs=count_macs(artifact.module, artifact.inputs),
        skipped=explained(scheme.skipped, found.config.float_layers),
        details={
            "int8_macs_ratio": integer_share(found.program, artifact.inputs),
            "parameter_sets": len(set(scheme.roots.values())),
            "float_kernels": scheme.float_kernels,
            "calibration_samples": len(data),
            "calibration_s": calibration_s,
            "held_out": {"samples": len(held_out), "metric": judge.metric, "float": judge.baseline},
            "trials": [asdict(trial) for trial in found.trials],
            "chosen": asdict(found.chosen),
            "sensitivities": [asdict(entry) for entry in ranking],
        },
    )
    return artifact.after(found.program, record, quantized=True)


def fewer_float_layers(config: CalibrationConfig, ranking: list[Sensitivity]) -> list[CalibrationConfig]:
    """Candidates with the 1, 2, 3, 4, 6, 8, 12 … most sensitive layers in float, cheapest first; never all of them."""
    counts = sorted({*range(1, 4), *(2**power for power in range(2, 10)), *(3 * 2**power for power in range(1, 9))})
    layers = tuple(entry.layer for entry in ranking)
    return [
        CalibrationConfig(config.method, config.bias_correction, layers[:count], config.equalised)
        for count in counts
        if count < len(layers)
    ]


def explained(skipped: tuple[SkippedLayer, ...], float_layers: tuple[str, ...]) -> tuple[SkippedLayer, ...]:
    """The skipped layers, where those that the search spared say so."""
    reason = "left in float by the search: the accuracy budget needs it"
    return tuple(
        SkippedLayer(layer=entry.layer, reason=reason) if entry.layer in float_layers else entry for entry in skipped
    )


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
