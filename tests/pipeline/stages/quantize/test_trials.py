"""Which configuration is chosen: one within the budget, then by SQNR, else the one that uses up the least."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.stages.quantize.judge import Score
from pipeline.stages.quantize.trials import CalibrationConfig, search

WITHIN_BUT_NOISY = Score(metric=0.4, budget_used=0.1, sqnr_db=20.0)
WITHIN = Score(metric=0.5, budget_used=0.9, sqnr_db=30.0)
BEYOND = Score(metric=0.9, budget_used=2.0, sqnr_db=40.0)
FAR_BEYOND = Score(metric=0.95, budget_used=3.0, sqnr_db=50.0)
AS_FAR = Score(metric=0.9, budget_used=2.0, sqnr_db=45.0)


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([WITHIN_BUT_NOISY, WITHIN, BEYOND], 1),
        ([BEYOND, WITHIN_BUT_NOISY], 1),
        ([FAR_BEYOND, BEYOND], 1),
        ([BEYOND, AS_FAR], 1),
        ([WITHIN, Score(metric=float("nan"), budget_used=float("inf"), sqnr_db=60.0)], 0),
    ],
    ids=["by SQNR within the budget", "within before beyond", "least beyond", "ties by SQNR", "a metric that is NaN"],
)
def test_configuration_is_chosen_by_the_budget_then_by_sqnr(scores: list[Score], best: int) -> None:
    configs = [CalibrationConfig(f"method{number}", "none") for number in range(len(scores))]
    left = iter(scores)
    graph = torch.fx.symbolic_trace(nn.Identity())
    found = search(configs, lambda _: graph, lambda _: next(left), stop_when_met=False)
    assert found.config.method == f"method{best}"
    assert len(found.trials) == len(scores)
