"""The accuracy-driven search between calibration configurations, run by neural-compressor's tuner.

https://github.com/intel/neural-compressor: our configuration is registered there; its loader yields the trials, its
monitor holds the baseline, keeps the results and says when the budget is met.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from neural_compressor.common.base_config import BaseConfig, register_config
from neural_compressor.common.base_tuning import TuningConfig, init_tuning
from torch.fx import GraphModule

logging.getLogger("neural_compressor").setLevel(logging.ERROR)  # importing it sets its own level


@register_config(framework_name="edgewright", algo_name="static_int8")
class CalibrationConfig(BaseConfig):  # type: ignore[misc]  # neural-compressor has no type information
    """One way to turn calibration statistics into a quantized program."""

    name = "static_int8"
    params_list = ["method", "bias_correction"]

    def __init__(self, method: str = "minmax", bias_correction: bool = True, white_list: object = None) -> None:
        super().__init__(white_list=white_list)
        self.method, self.bias_correction = method, bias_correction

    @classmethod
    def register_supported_configs(cls) -> None:
        """Nothing to add: the annotator's table says what is supported."""

    @classmethod
    def get_config_set_for_tuning(cls) -> list[CalibrationConfig]:
        """Every range method with bias correction."""
        return [cls(method) for method in ("minmax", "percentile", "mse")]


@dataclass(frozen=True, slots=True)
class Trial:
    """One configuration and what it reached on the held-out samples (``metric`` a ratio, ``sqnr_db`` in dB)."""

    method: str
    bias_correction: bool
    metric: float
    sqnr_db: float
    within_budget: bool
    duration_s: float


def search(
    configs: Sequence[CalibrationConfig],
    build: Callable[[CalibrationConfig], GraphModule],
    judge: Callable[[GraphModule], tuple[float, float]],
    *,
    baseline: float,
    max_drop: float,
) -> tuple[GraphModule, Trial, list[Trial]]:
    """Try every configuration; of those within the budget take the one with the highest SQNR.

    Top-1 on a few hundred held-out samples moves in steps too coarse to rank close configurations by, so it only says
    which of them meet the budget. Where none does, the highest metric wins.

    Args:
        build: Makes the quantized program of a configuration.
        judge: Metric (a ratio) and SQNR in dB of a program on the held-out samples.
        baseline: The float model's metric.
        max_drop: How far below the baseline the metric may fall, absolute.

    Returns:
        The chosen program, its trial, and all trials in order.
    """
    tolerable_loss = max_drop / baseline if baseline > 0 else 1.0  # neural-compressor's loss is relative
    tuning = TuningConfig(config_set=list(configs), tolerable_loss=tolerable_loss, max_trials=len(configs))
    loader, _, monitor = init_tuning(tuning)
    monitor.set_baseline(baseline)
    results: list[tuple[GraphModule, Trial]] = []
    for index, config in enumerate(loader, start=1):
        started = time.perf_counter()
        program = build(config)
        metric, sqnr = judge(program)
        monitor.add_trial_result(index, metric, config)
        trial = Trial(
            config.method,
            config.bias_correction,
            metric,
            sqnr,
            within_budget=metric >= baseline - max_drop,
            duration_s=time.perf_counter() - started,
        )
        results.append((program, trial))
    program, chosen = max(results, key=lambda result: _rank(result[1]))
    return program, chosen, [trial for _, trial in results]


def _rank(trial: Trial) -> tuple[bool, float, float]:
    return trial.within_budget, trial.sqnr_db if trial.within_budget else trial.metric, trial.sqnr_db
