"""The choice: which of the candidate configurations a model is quantized with."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import GraphModule

from pipeline.data.samples import SampleSet
from pipeline.recipe import QuantizeConfig
from pipeline.stages.quantize.improve.correction import BiasCorrection
from pipeline.stages.quantize.improve.equalisation import equalised, gaining_factors
from pipeline.stages.quantize.judge import Judge
from pipeline.stages.quantize.ranges.calibration import calibrate
from pipeline.stages.quantize.sensitivity import Sensitivity, sensitivities
from pipeline.stages.quantize.simulation import Simulations
from pipeline.stages.quantize.trials import CalibrationConfig, Found, better, search


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and how.

    Attributes:
        prepared: The chosen simulation, configured; `simulation.convert` turns it into the program.
        found: The chosen configuration and all trials.
        ranking: Sensitivities of the layers, where they were measured; the most sensitive first.
    """

    prepared: GraphModule
    found: Found
    ranking: list[Sensitivity]


def choose(simulations: Simulations, judge: Judge, config: QuantizeConfig, data: SampleSet) -> Choice:
    """Try range methods and bias corrections, then the recipe's other options; keep what the judge prefers.

    Equalised channels, AdaRound and, where the budget is not met, layers in float are each tried on the best
    configuration so far.
    """

    def build(trial: CalibrationConfig) -> GraphModule:
        simulation = simulations.simulation(equalised=trial.equalised, float_layers=trial.float_layers)
        return simulation.configure(trial.method, trial.bias_correction, adaround=trial.adaround)

    def run(configs: list[CalibrationConfig], *, stop_when_met: bool = False) -> Found:
        return search(configs, build, judge, stop_when_met=stop_when_met)

    corrections: tuple[BiasCorrection, ...] = ("empirical", "analytic") if config.bias_correction else ("none",)
    found = run([CalibrationConfig(method, correction) for method in config.observers for correction in corrections])
    if _equalise(simulations, config, data):
        found = better(found, run([found.config.but(equalised=True)]))
    if config.adaround:
        found = better(found, run([found.config.but(bias_correction=corrections[0], adaround=True)]))
    ranking: list[Sensitivity] = []
    if config.sensitivity or (config.mixed_precision and not found.chosen.within_budget):
        plain = build(found.config.but(bias_correction="none", adaround=False))
        ranking = sensitivities(plain, judge.on(config.sensitivity_samples))
    sparing = fewer_float_layers(found.config, ranking)
    if config.mixed_precision and not found.chosen.within_budget and sparing:
        found = better(found, run(sparing, stop_when_met=True))
    return Choice(build(found.config), found, ranking)


def _equalise(simulations: Simulations, config: QuantizeConfig, data: SampleSet) -> bool:
    """Calibrate a copy of the graph with equalised channels if any layer gains by it; return whether one does."""
    plain = simulations.calibration
    factors = gaining_factors(plain.graph, plain.few_inputs, layers=config.equalisation, norms=config.smoothquant)
    if factors:
        graph = equalised(plain.graph, factors)
        simulations.equalised = calibrate(graph, data, batch_size=config.batch_size, methods=config.observers)
    return bool(factors)


def fewer_float_layers(config: CalibrationConfig, ranking: list[Sensitivity]) -> list[CalibrationConfig]:
    """Candidates with the 1, 2, 3, 4, 6, 8, 12 … most sensitive layers in float, cheapest first; never all of them."""
    counts = sorted({*range(1, 4), *(2**power for power in range(2, 10)), *(3 * 2**power for power in range(1, 9))})
    layers = tuple(entry.layer for entry in ranking)
    return [config.but(float_layers=layers[:count]) for count in counts if count < len(layers)]
