"""What a stage declares about itself, so that a run can check a recipe, supply the stage and store its result.

Each stage's module has a `Stage`; `pipeline.execution.stages` lists them under their recipe keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.core import Model, RecipeError
from pipeline.data.samples import SampleSet
from pipeline.recipe import Budget
from pipeline.target import Target
from pipeline.tasks.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a stage needs, under one configuration.

    Attributes:
        train: What needs training samples (``stage 'distill'``, ``qat``); None where nothing does.
        calibration: The same for calibration samples.
        target_dtype: A dtype of weights that every target has to hold; None where the stage leaves them in FP32.
        measures: The target whose latency it measures, on which its result depends; None where it measures none.
        trains: It trains, so every process that shares the run takes part, and a killed training can go on.
        logs: It writes its loss to a CSV file, step by step.
        one_process: The refusal where several processes share the run; None where they can.
    """

    train: str | None = None
    calibration: str | None = None
    target_dtype: str | None = None
    measures: str | None = None
    trains: bool = False
    logs: bool = False
    one_process: RecipeError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Supplies:
    """What a run has to give; each stage takes what it needs.

    Attributes:
        held_out: Samples to choose by, in neither of the other two sets.
        root: What the recipe's relative paths start from.
        checkpoint: Where a training keeps its state; for stages that train.
        log: CSV file for the loss; for stages that log.
    """

    train: SampleSet | None
    calibration: SampleSet | None
    held_out: SampleSet | None
    targets: tuple[Target, ...]
    task: Task
    budget: tuple[Budget, ...]
    seed: int
    root: Path
    checkpoint: Path | None = None
    log: Path | None = None


def _same_architecture(model: Model, _config: Any, _supplies: Supplies) -> nn.Module:
    return model.module


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage, as a run sees it.

    Attributes:
        needs: What it needs under a configuration.
        apply: Calls the stage's function with what a run supplies.
        architecture: A module of the architecture, and of any width, that it returns; raises where it cannot be built.
    """

    needs: Callable[[Any], Needs]
    apply: Callable[[Model, Any, Supplies], Model]
    architecture: Callable[[Model, Any, Supplies], nn.Module] = _same_architecture
