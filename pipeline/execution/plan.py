"""What a checked recipe will do, and about how long that takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from pipeline.core import EdgewrightError
from pipeline.execution.prepare import Prepared
from pipeline.machine.processor import all_cores
from pipeline.models.capture import count_macs, count_parameters, example_inputs
from pipeline.recipe import DistillConfig, PruneConfig, QuantizeConfig, StageStep
from pipeline.report.model import read_report
from pipeline.stages.benchmark import SECONDS_PER_CANDIDATE

BACKWARD = 3.0
"""A training step in forward passes: forward, and backward at about twice that."""
SIMULATED = 6.0
"""A pass through a graph that simulates rounding, in passes of the float network."""
TRIALS = 6
"""Candidates that quantize compares on the held-out samples, in most runs."""
FIXED_S = {"prune": 3.0, "distill": 1.0, "quantize": 10.0, "onnx": 8.0, "coreml": 15.0, "tflite": 25.0, "start": 10.0}
"""Seconds that stages and converters take of a small network, whatever the data: imports, captures, conversions."""
MARGINS = (0.5, 2.0)
"""How far off such a count may be."""
AT_ONCE = 32
MEASURED_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One stage or target: its settings that are not the defaults, and what is to be known of it."""

    name: str
    settings: dict[str, Any]
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """About how long a run takes, in seconds, and how that is known."""

    least_s: float
    most_s: float
    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will do; see `plan_of`."""

    name: str
    network: str
    parameters: int
    macs: int
    inputs: dict[str, list[int | str]]
    outputs: tuple[str, ...]
    task: str
    budgets: tuple[str, ...]
    data: dict[str, int]
    stages: tuple[Step, ...]
    targets: tuple[Step, ...]
    warnings: tuple[str, ...]
    estimate: Estimate


def plan_of(prepared: Prepared, out: Path) -> Plan:
    """What a run of a checked recipe will do.

    Args:
        out: The run's folder, in which an earlier run may have left its report.
    """
    model, recipe = prepared.model, prepared.recipe
    sets = {
        "train": prepared.train,
        "calibration": prepared.calibration,
        "held out": prepared.held_out if recipe.stages else None,
        "evaluation": prepared.evaluation,
    }
    return Plan(
        name=recipe.name,
        network=type(model.module).__name__,
        parameters=count_parameters(model.module),
        macs=count_macs(model.module, model.examples or model.inputs),
        inputs={spec.name: list(spec.written) for spec in model.inputs},
        outputs=model.outputs,
        task=prepared.task.name,
        budgets=tuple(_budget(prepared)),
        data={role: len(samples) for role, samples in sets.items() if samples is not None},
        stages=tuple(Step(name=step.name, settings=_settings(step.config), note="") for step in recipe.stages),
        targets=tuple(_targets(prepared)),
        warnings=prepared.warnings,
        estimate=_earlier(prepared, out) or _counted(prepared),
    )


def _budget(prepared: Prepared) -> Iterator[str]:
    for budget in prepared.budgets:
        info = prepared.task.metric(str(budget.metric)).info
        if budget.max_drop_relative is not None:
            yield f"{info.title}: at most {budget.max_drop_relative:.3g} of the original's value worse"
        elif budget.max_drop is None and info.unit != "ratio":
            yield f"{info.title}: at most 1 % worse"
        elif info.unit == "ratio":
            yield f"{info.title}: at most {100 * info.allowed(1.0, budget.max_drop, None):.3g} pp worse"
        else:
            yield f"{info.title}: at most {budget.max_drop:.3g} {info.unit}".rstrip() + " worse"


def _settings(config: BaseModel) -> dict[str, Any]:
    """What a recipe sets, without what is the default."""
    return config.model_dump(mode="json", exclude_defaults=True)


def _targets(prepared: Prepared) -> Iterator[Step]:
    for step, target in zip(prepared.recipe.targets, prepared.targets, strict=True):
        missing, reason = target.missing_package(), target.cannot_run()
        if missing is not None:
            note = f"skipped: pip install '{missing}'"
        elif reason is not None:
            note = f"file only: {reason}"
        elif step.name == "coreml" and sys.platform != "darwin":
            note = "file, accuracy by the reference interpreter, estimates; latency only on a Mac"
        else:
            note = "file, accuracy and latency"
        yield Step(name=step.name, settings=_settings(step.config), note=note)


def _earlier(prepared: Prepared, out: Path) -> Estimate | None:
    """How long the same recipe took before, where its report is in the run's folder."""
    try:
        report = read_report(out / "report.json")
    except (OSError, EdgewrightError):
        return None
    recipe = prepared.recipe.model_dump(mode="json", exclude_none=True)
    if report.failure is not None or report.run.recipe != recipe:
        return None
    took = report.run.duration_s
    method = f"the run of {report.run.started_at:%Y-%m-%d} took that long; finished stages are taken from the store"
    return Estimate(least_s=took, most_s=took, method=method)


def _counted(prepared: Prepared) -> Estimate:
    """Samples that pass through the network, times the time of one, and what converters usually take."""
    each = _seconds_a_sample(prepared)
    passes = sum(_passes(step, prepared) for step in prepared.recipe.stages)
    installed = [target for target in prepared.targets if target.missing_package() is None]
    runs = 2 + SIMULATED + 2 * len(installed)
    passes += runs * len(prepared.evaluation)
    candidates = 1 + sum(2 + len(target.variants) for target in installed if target.cannot_run() is None)
    fixed = FIXED_S["start"] + SECONDS_PER_CANDIDATE * candidates * len({1, all_cores()})
    fixed += sum(FIXED_S[step.name] for step in prepared.recipe.stages)
    fixed += sum(FIXED_S[target.name] for target in installed)
    least, most = ((fixed + passes * each) * margin for margin in MARGINS)
    method = (
        f"counted from a forward pass of {1000 * each:.3g} ms for each sample on this machine, about {passes:,.0f} "
        f"passes, and {fixed:.0f} s that converters and timing usually take"
    )
    return Estimate(least_s=least, most_s=most, method=method)


@torch.no_grad()
def _seconds_a_sample(prepared: Prepared) -> float:
    """A forward pass of the float network in a batch; the best of many, since other programs disturb some."""
    model = prepared.model
    inputs = example_inputs(model.examples or model.inputs, AT_ONCE if model.examples else 1)
    begin, best = time.perf_counter(), float("inf")
    while best == float("inf") or time.perf_counter() - begin < MEASURED_S:
        started = time.perf_counter()
        model.module(*inputs)
        best = min(best, time.perf_counter() - started)
    return best / len(inputs[0])


def _passes(step: StageStep, prepared: Prepared) -> float:
    """Forward passes of one sample that a stage takes, about."""
    train, held_out = (0 if samples is None else len(samples) for samples in (prepared.train, prepared.held_out))
    calibration = 0 if prepared.calibration is None else len(prepared.calibration)
    epoch = train * (BACKWARD + 1) + held_out
    config, evaluation = step.config, len(prepared.evaluation)
    if isinstance(config, PruneConfig):
        recovered = 0 if config.recover is None else config.iterations * config.recover.epochs
        return recovered * epoch + held_out + evaluation
    if isinstance(config, DistillConfig):
        return config.epochs * epoch + evaluation
    assert isinstance(config, QuantizeConfig)
    trained = 0.0 if config.qat is None else config.qat.epochs * (train * (SIMULATED * BACKWARD + 1))
    return calibration * 3 + TRIALS * SIMULATED * held_out + SIMULATED * evaluation + trained
