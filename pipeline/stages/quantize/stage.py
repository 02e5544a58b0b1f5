"""The quantize stage: from a float module to one quantized program that every target lowers."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, replace
from pathlib import Path

from torch import nn
from torch.fx import GraphModule

from pipeline.core import Model, SkippedLayer, StageError, StageRecord
from pipeline.data.samples import SampleSet
from pipeline.models.capture import count_macs, count_parameters
from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.quantize import qat
from pipeline.stages.quantize.annotator import plan
from pipeline.stages.quantize.calibration import Simulation, calibrate, convert, fitting_batch
from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.graph.cost import integer_share
from pipeline.stages.quantize.improve.batch_norms import reestimated
from pipeline.stages.quantize.improve.correction import BiasCorrection
from pipeline.stages.quantize.improve.equalisation import equalised, gaining_factors
from pipeline.stages.quantize.sensitivity import Sensitivity, sensitivities
from pipeline.stages.quantize.trials import CalibrationConfig, Found, better, search
from pipeline.tasks.metrics import Comparison, predictor


def quantize(
    model: Model,
    config: QuantizeConfig,
    data: SampleSet,
    *,
    budget: Budget,
    held_out: SampleSet | None = None,
    train: SampleSet | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    log: Path | None = None,
) -> Model:
    """Quantize a float module to static int8, calibrated on real samples.

    Args:
        data: Calibration samples, unlabelled or not.
        budget: How far the metric on the held-out samples may fall below the float module's.
        held_out: Samples to choose the configuration by; a quarter of ``data`` where there are none.
        train: What quantization-aware training learns from; nothing else needs it.
        seed: Draws that quarter, and the order of training.
        checkpoint: Where the training's state is kept, so that a killed one goes on; removed at the end.
        log: CSV file of its loss, step by step.

    Raises:
        DataError: A sample holds NaN or infinity.
        StageError: The module cannot be captured, or ``qat`` has nothing to train on.
    """
    started = time.perf_counter()
    if config.qat is not None and train is None:
        raise StageError("qat needs training samples", where="quantize: qat", fix="add data.train, or remove qat")
    if held_out is None:
        data, held_out = data.split(max(1, len(data) // 4), seed) if len(data) > 1 else (data, data)
    float_module, batch_norm = model.module, None
    if config.batch_norm:
        follows = Judge(model.reference, held_out, budget, config.batch_size)
        settled = reestimated(model.module, data, batch_size=config.batch_size)
        as_is, anew = follows(model.module), follows(settled)
        batch_norm = {"before": as_is[0], "after": anew[0], "kept": anew > as_is}
        if anew > as_is:
            float_module = settled
    graph = canonical_graph(replace(model, module=float_module))
    calibrated = calibrate(graph, data, batch_size=config.batch_size, methods=config.observers)
    calibration_s = time.perf_counter() - started
    equal = calibrated
    judge = Judge(float_module, held_out, budget, fitting_batch(calibrated.graph, config.batch_size))
    simulations: dict[tuple[bool, tuple[str, ...]], Simulation] = {}

    def build(trial: CalibrationConfig) -> GraphModule:
        key = trial.equalised, (*config.skip, *trial.float_layers)
        if key not in simulations:
            simulations[key] = Simulation(equal if trial.equalised else calibrated, key[1])
        return simulations[key].configure(trial.method, trial.bias_correction, adaround=trial.adaround)

    def run(configs: list[CalibrationConfig], *, stop_when_met: bool = False) -> Found:
        return search(
            configs, build, judge, baseline=judge.baseline, max_drop=judge.max_drop, stop_when_met=stop_when_met
        )

    corrections: tuple[BiasCorrection, ...] = ("empirical", "analytic") if config.bias_correction else ("none",)
    found = run([CalibrationConfig(method, correction) for method in config.observers for correction in corrections])
    factors = gaining_factors(graph, calibrated.few_inputs, layers=config.equalisation, norms=config.smoothquant)
    if factors:
        equal = calibrate(equalised(graph, factors), data, batch_size=config.batch_size, methods=config.observers)
        found = better(found, run([found.config.but(equalised=True)]))
    if config.adaround:
        found = better(found, run([found.config.but(bias_correction=corrections[0], adaround=True)]))
    ranking: list[Sensitivity] = []
    if config.sensitivity or (config.mixed_precision and not found.chosen.within_budget):
        plain = build(found.config.but(bias_correction="none", adaround=False))
        some = held_out.take(config.sensitivity_samples)
        ranking = sensitivities(plain, Judge(float_module, some, budget, judge.batch_size))
    if config.mixed_precision and not found.chosen.within_budget:
        found = better(found, run(fewer_float_layers(found.config, ranking), stop_when_met=True))

    prepared = build(found.config)
    program = convert(prepared if config.qat is None else copy.deepcopy(prepared))
    metric, sqnr = judge(program)
    learned = None
    if config.qat is not None and train is not None:
        logs = qat.train(
            prepared,
            model.reference,
            train,
            config.qat,
            seed=seed,
            validate=lambda student: judge(student)[0],
            checkpoint=checkpoint,
            log=log,
        )
        trained = convert(prepared)
        after, after_db = judge(trained)
        learned = {
            "samples": len(train),
            "epochs": [asdict(log) for log in logs],
            "post_training": metric,
            "metric": after,
            "sqnr_db": after_db,
            "kept": after >= metric,
        }
        if after >= metric:
            program, metric, sqnr = trained, after, after_db
    scheme = plan(calibrated.graph, (*config.skip, *found.config.float_layers))
    record = StageRecord(
        stage="quantize",
        config=config.model_dump(mode="json"),
        duration_s=time.perf_counter() - started,
        parameters=count_parameters(program),
        macs=count_macs(model.module, model.inputs),
        skipped=explained(scheme.skipped, found.config.float_layers),
        details={
            "int8_macs_ratio": integer_share(program, model.inputs),
            "parameter_sets": len(set(scheme.roots.values())),
            "float_kernels": scheme.float_kernels,
            "calibration_samples": len(data),
            "calibration_s": calibration_s,
            "held_out": {
                "samples": len(held_out),
                "metric": judge.metric,
                "float": judge.baseline,
                "int8": metric,
                "sqnr_db": sqnr,
            },
            "batch_norm": batch_norm,
            "trials": [asdict(trial) for trial in found.trials],
            "chosen": asdict(found.chosen),
            "qat": learned,
            "sensitivities": [asdict(entry) for entry in ranking],
        },
    )
    return model.after(program, record, quantized=True)


def fewer_float_layers(config: CalibrationConfig, ranking: list[Sensitivity]) -> list[CalibrationConfig]:
    """Candidates with the 1, 2, 3, 4, 6, 8, 12 … most sensitive layers in float, cheapest first; never all of them."""
    counts = sorted({*range(1, 4), *(2**power for power in range(2, 10)), *(3 * 2**power for power in range(1, 9))})
    layers = tuple(entry.layer for entry in ranking)
    return [config.but(float_layers=layers[:count]) for count in counts if count < len(layers)]


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

    Attributes:
        max_drop: How far the metric may fall: the budget's share, but one sample at least, which is chance.
    """

    def __init__(self, module: nn.Module, samples: SampleSet, budget: Budget, batch_size: int) -> None:
        self._samples, self.batch_size = samples, batch_size
        predict = predictor(module)
        self._reference = [predict(batch.inputs) for batch in samples.batches(batch_size)]
        compared = self._compare(module)
        self.metric = "top1" if compared.top1 is not None and budget.metric == "top1" else "agreement"
        if not compared.metrics():
            self.metric = "signal"
        self.baseline = self._metric(compared)
        self.max_drop = budget.max_drop if self.metric == "signal" else max(budget.max_drop, 1 / len(samples))

    def __call__(self, program: nn.Module) -> tuple[float, float]:
        """Metric and SQNR in dB of all outputs."""
        compared = self._compare(program)
        return self._metric(compared), compared.sqnr_db

    def _compare(self, module: nn.Module) -> Comparison:
        comparison, predict = Comparison(), predictor(module)
        for batch, reference in zip(self._samples.batches(self.batch_size), self._reference, strict=True):
            comparison.update(predict(batch.inputs), reference, batch.labels)
        return comparison

    def _metric(self, compared: Comparison) -> float:
        if self.metric == "signal":
            return max(0.0, 1 - 10 ** (-compared.sqnr_db / 10))
        return compared.metrics()[self.metric]
