"""Delivery: the artifacts of every target, their benchmark, and the report on all of it."""

from __future__ import annotations

import logging
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pipeline.core import EdgewrightError, MetricInfo, Model, first_line
from pipeline.core.files import atomic_write, write_bytes
from pipeline.data.samples import SampleSet
from pipeline.execution.keys import export_key, package_versions
from pipeline.execution.pictures import shown_samples
from pipeline.execution.prepare import Prepared
from pipeline.execution.store import Store
from pipeline.execution.task import NOT_ASKED
from pipeline.machine.processor import all_cores, cpu_features, cpu_name
from pipeline.progress import announced
from pipeline.recipe import Budget
from pipeline.report.model import (
    BudgetRecord,
    DataRecord,
    Environment,
    FailureRecord,
    MetricBudget,
    OriginalRecord,
    Report,
    RunInfo,
    TargetRecord,
    TaskRecord,
)
from pipeline.report.verdict import judge
from pipeline.stages.benchmark import benchmark
from pipeline.stages.export import export
from pipeline.target import Exported, Target
from pipeline.tasks.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Start:
    """When a run began: the date, and the reading of a clock that is never set back."""

    at: datetime
    clock_s: float

    @classmethod
    def now(cls) -> Self:
        return cls(datetime.now(UTC), time.monotonic())


def deliver(prepared: Prepared, model: Model, key: str, store: Store, out: Path, start: Start) -> Report:
    """Export and benchmark the model that the stages made, and report on the run.

    Args:
        key: The model's, in the store.
        out: Where the artifacts go, one folder a target.
    """
    steps = len(prepared.recipe.stages) + 2
    with announced(f"[{steps - 1}/{steps}] export"):
        exported = [_export(target, model, key, prepared, store, out) for target in prepared.targets]
    with announced(f"[{steps}/{steps}] benchmark"):
        original, records = _benchmark(model, exported, prepared, out)
    samples = shown_samples(model, exported, prepared.evaluation, prepared.task)
    return _report(prepared, model, original, records, start).model_copy(update={"samples": samples})


def deliver_unfinished(
    prepared: Prepared, model: Model, stage: str, error: Exception, out: Path, start: Start
) -> Report:
    """Report on a run whose stage failed: the original, and the stages before that one.

    Args:
        model: The model that the failed stage was given.
    """
    reason = f"not reached: stage {stage} failed"
    missing = [Exported(target=target, status="skipped", reason=reason) for target in prepared.targets]
    original, records = _benchmark(model, missing, prepared, out)
    text = str(error) if isinstance(error, EdgewrightError) else f"{type(error).__name__}: {first_line(error)}"
    return _report(prepared, model, original, records, start, FailureRecord(stage=stage, reason=text))


def _benchmark(
    model: Model, exported: Sequence[Exported], prepared: Prepared, out: Path
) -> tuple[OriginalRecord, tuple[TargetRecord, ...]]:
    return benchmark(model, exported, prepared.evaluation, root=out, task=prepared.task, budgets=prepared.budgets)


def _export(target: Target, model: Model, key: str, prepared: Prepared, store: Store, out: Path) -> Exported:
    """One target's artifacts under ``out/<target>``. The store keeps them; it keeps no skipped or failed export."""
    result_key = export_key(target, model, key, prepared)
    with store.locked(result_key):
        if not store.holds(result_key):
            with store.unfinished(result_key) as folder:
                (exported,) = export(model, [target], folder)
                if exported.status != "ok":
                    return exported
                write_bytes(folder / "exported.json", exported.to_json())
                store.keep(folder, result_key)
    stored = store.folder_of(result_key)
    with atomic_write(out / target.name) as staged:
        shutil.copytree(stored / target.name, staged)
    return Exported.from_json((stored / "exported.json").read_bytes(), target, out / target.name)


def _report(
    prepared: Prepared,
    model: Model,
    original: OriginalRecord,
    records: tuple[TargetRecord, ...],
    start: Start,
    failure: FailureRecord | None = None,
) -> Report:
    recipe = prepared.recipe
    sets = {"train": prepared.train, "calibration": prepared.calibration, "evaluation": prepared.evaluation}
    return report_on(
        model,
        original,
        records,
        start,
        name=recipe.name,
        recipe=recipe.model_dump(mode="json", exclude_none=True),
        task=prepared.task,
        named=recipe.task is not None,
        budgets=prepared.budgets,
        sets={role: samples for role, samples in sets.items() if samples is not None},
        seed=recipe.seed,
        warnings=prepared.warnings,
        failure=failure,
    )


def report_on(
    model: Model,
    original: OriginalRecord,
    records: tuple[TargetRecord, ...],
    start: Start,
    *,
    name: str,
    recipe: dict[str, Any],
    task: Task,
    named: bool,
    budgets: tuple[Budget, ...],
    sets: Mapping[str, SampleSet],
    seed: int,
    warnings: tuple[str, ...] = (),
    failure: FailureRecord | None = None,
) -> Report:
    """The report on what was measured, with its verdict.

    Args:
        name: What the run is called.
        recipe: What was asked for, as JSON values.
        named: Whether the task was asked for, or only suggested by the model.
        budgets: Each with the name of its metric.
        sets: The samples by their role: ``train``, ``calibration`` or ``evaluation``.
    """
    data = {
        role: DataRecord(name=samples.name, samples=len(samples), sha256=samples.sha256, notes=samples.source.notes)
        for role, samples in sets.items()
    }
    note = NOT_ASKED if not named and task.name == "fidelity" else task.note
    report = Report(
        run=RunInfo(
            id=f"{name}-{start.at:%Y%m%dT%H%M%SZ}",
            started_at=start.at,
            duration_s=time.monotonic() - start.clock_s,
            recipe=recipe,
            environment=_environment(),
            seeds={"run": seed},
        ),
        data=data,
        original=original,
        stages=model.history,
        task=TaskRecord(name=task.name, metrics=tuple(spec.info for spec in task.metrics), note=note),
        budget=_budget(budgets[0], task, original.metrics, records),
        budgets=tuple(_metric_budget(budget, task, original.metrics, records) for budget in budgets),
        targets=records,
        warnings=warnings,
        failure=failure,
    )
    return report.model_copy(update={"verdict": judge(report)})


def _metric_budget(
    budget: Budget, task: Task, original: dict[str, float], records: tuple[TargetRecord, ...]
) -> MetricBudget:
    """A budget in its metric's unit, and what the intervals of the targets say of it."""
    assert budget.metric is not None  # it is settled
    info, baseline = _baseline(budget.metric, task, original)
    verdict = {
        record.target: found.verdict
        for record in records
        for found in record.differences
        if found.metric == budget.metric and found.verdict is not None
    }
    return MetricBudget(
        metric=budget.metric,
        max_drop=info.allowed(baseline, budget.max_drop, budget.max_drop_relative),
        unit=info.unit,
        verdict=verdict,
    )


def _budget(
    budget: Budget, task: Task, original: dict[str, float], records: tuple[TargetRecord, ...]
) -> BudgetRecord | None:
    """The first budget as reports have always had it, by the measured value alone; None where it is no ratio."""
    metric = budget.metric
    assert metric is not None  # it is settled
    info, baseline = _baseline(metric, task, original)
    allowed = info.allowed(baseline, budget.max_drop, budget.max_drop_relative)
    if info.unit != "ratio" or allowed > 1:
        return None
    met = {
        record.target: info.drop(baseline, record.metrics[metric]) <= allowed + 1e-12
        for record in records
        if record.metrics is not None
    }
    return BudgetRecord(metric=metric, max_drop=allowed, met=met)


def _baseline(metric: str, task: Task, original: dict[str, float]) -> tuple[MetricInfo, float]:
    """What a metric is, and the original's value."""
    info = task.metric(metric).info
    return info, original.get(metric, info.original_value or 0.0)


def _environment() -> Environment:
    return Environment(
        packages=package_versions(),
        cpu=cpu_name(),
        cpu_features=cpu_features(),
        cores=all_cores(),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )
