"""Trials: configurations of calibration, tried in order and judged, run by neural-compressor's tuner.

https://github.com/intel/neural-compressor: our configuration is registered there; its loader yields the trials, its
monitor holds the baseline, keeps the results and says when the budget is met.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from neural_compressor.common.base_config import BaseConfig, register_config
from neural_compressor.common.base_tuning import TuningConfig, init_tuning
from torch.fx import GraphModule

from pipeline.stages.quantize.improve.correction import BiasCorrection
from pipeline.stages.quantize.judge import Score

logging.getLogger("neural_compressor").setLevel(logging.ERROR)  # importing it sets its own level

_LOSS = 0.01
"""In the tuner's terms: it knows accuracies with a relative loss, and a budget that is used up is one of 1 %."""


@register_config(framework_name="edgewright", algo_name="static_int8")
class CalibrationConfig(BaseConfig):  # type: ignore[misc]  # neural-compressor has no type information
    """One way to turn calibration statistics into a quantized program.

    Args:
        method: How ranges are read from the statistics.
        bias_correction: How biases compensate for the mean shift that rounding causes.
        float_layers: Modules left in float.
        equalised: Whether channels were equalised before calibration.
        adaround: Whether AdaRound chose how weights are rounded.
    """

    name = "static_int8"
    params_list = ["method", "bias_correction", "float_layers", "equalised", "adaround"]
    non_tunable_params = ["white_list", *params_list]  # every configuration is listed, none is expanded

    def __init__(
        self,
        method: str = "minmax",
        bias_correction: BiasCorrection = "empirical",
        float_layers: tuple[str, ...] = (),
        equalised: bool = False,
        adaround: bool = False,
        white_list: object = None,
    ) -> None:
        super().__init__(white_list=white_list)
        self.method, self.bias_correction = method, bias_correction
        self.float_layers, self.equalised, self.adaround = float_layers, equalised, adaround

    def but(self, **changes: Any) -> CalibrationConfig:
        """This configuration with some parameters changed."""
        return CalibrationConfig(**{name: getattr(self, name) for name in self.params_list} | changes)

    @classmethod
    def register_supported_configs(cls) -> None:
        """Nothing to add: the table in `graph.capabilities` says what is supported."""

    @classmethod
    def get_config_set_for_tuning(cls) -> list[CalibrationConfig]:
        """The default alone: trials are listed one by one."""
        return [cls()]


@dataclass(frozen=True, slots=True)
class Trial:
    """One configuration and what it reached on the held-out samples; see `Score`."""

    method: str
    bias_correction: BiasCorrection
    float_layers: tuple[str, ...]
    equalised: bool
    adaround: bool
    metric: float
    budget_used: float
    sqnr_db: float
    outputs_db: tuple[float, ...]
    within_budget: bool
    duration_s: float


@dataclass(frozen=True, slots=True)
class Found:
    """The outcome of a search: the chosen configuration and its trial, and all trials in order."""

    config: CalibrationConfig
    chosen: Trial
    trials: tuple[Trial, ...]


def search(
    configs: Sequence[CalibrationConfig],
    build: Callable[[CalibrationConfig], GraphModule],
    judge: Callable[[GraphModule], Score],
    *,
    stop_when_met: bool,
) -> Found:
    """Try configurations in order; of those within the budget take the one with the highest SQNR.

    On a few hundred held-out samples a metric is too coarse to rank similar configurations, so it only decides which of
    them meet the budget. If none does, the one that uses up the least wins.

    Args:
        build: Makes the simulation of a configuration.
        judge: Scores a program on the held-out samples.
        stop_when_met: Stop at the first configuration within the budget; for lists ordered by cost.
    """
    tuning = TuningConfig(config_set=list(configs), tolerable_loss=_LOSS, max_trials=len(configs))
    loader, _, monitor = init_tuning(tuning)
    monitor.set_baseline(1.0)
    best: tuple[CalibrationConfig, Trial] | None = None
    trials: list[Trial] = []
    for index, config in enumerate(loader, start=1):
        started = time.perf_counter()
        score = judge(build(config))
        monitor.add_trial_result(index, 1 - _LOSS * score.budget_used, config)
        trial = Trial(
            config.method,
            config.bias_correction,
            config.float_layers,
            config.equalised,
            config.adaround,
            score.metric,
            score.budget_used,
            score.sqnr_db,
            score.outputs_db,
            within_budget=score.within_budget,
            duration_s=time.perf_counter() - started,
        )
        trials.append(trial)
        if best is None or _rank(trial) > _rank(best[1]):
            best = config, trial
        if stop_when_met and monitor.need_stop():
            break
    assert best is not None  # there is at least one configuration
    return Found(*best, tuple(trials))


def better(first: Found, second: Found) -> Found:
    """The better of two searches, with the trials of both."""
    winner = max(first, second, key=lambda found: _rank(found.chosen))
    return replace(winner, trials=first.trials + second.trials)


def _rank(trial: Trial) -> tuple[bool, float, float]:
    return trial.within_budget, trial.sqnr_db if trial.within_budget else -trial.budget_used, trial.sqnr_db
