"""Delivery: the artifacts of every target, their benchmark, and the report on all of it."""

from __future__ import annotations

import logging
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pipeline.core import EdgewrightError, MetricInfo, Model, first_line
from pipeline.core.files import atomic_write, write_bytes
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
    report = Report(
        run=RunInfo(
            id=f"{recipe.name}-{start.at:%Y%m%dT%H%M%SZ}",
            started_at=start.at,
            duration_s=time.monotonic() - start.clock_s,
            recipe=recipe.model_dump(mode="json", exclude_none=True),
            environment=_environment(),
            seeds={"run": recipe.seed},
        ),
        data={
            role: DataRecord(name=samples.name, samples=len(samples), sha256=samples.sha256, notes=samples.source.notes)
            for role, samples in sets.items()
            if samples is not None
        },
        original=original,
        stages=model.history,
        task=_task(prepared),
        budget=_budget(prepared, original.metrics, records),
        budgets=tuple(_metric_budget(budget, prepared, original.metrics, records) for budget in prepared.budgets),
        targets=records,
        warnings=prepared.warnings,
        failure=failure,
    )
    return report.model_copy(update={"verdict": judge(report)})


def _task(prepared: Prepared) -> TaskRecord:
    task = prepared.task
    note = NOT_ASKED if prepared.recipe.task is None and task.name == "fidelity" else task.note
    return TaskRecord(name=task.name, metrics=tuple(spec.info for spec in task.metrics), note=note)


def _metric_budget(
    budget: Budget, prepared: Prepared, original: dict[str, float], records: tuple[TargetRecord, ...]
) -> MetricBudget:
    """A budget in its metric's unit, and what the intervals of the targets say of it."""
    assert budget.metric is not None  # it is settled
    info, baseline = _baseline(budget.metric, prepared, original)
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


def _budget(prepared: Prepared, original: dict[str, float], records: tuple[TargetRecord, ...]) -> BudgetRecord | None:
    """The first budget as reports have always had it, by the measured value alone; None where it is no ratio."""
    budget = prepared.budgets[0]
    metric = budget.metric
    assert metric is not None  # it is settled
    info, baseline = _baseline(metric, prepared, original)
    allowed = info.allowed(baseline, budget.max_drop, budget.max_drop_relative)
    if info.unit != "ratio" or allowed > 1:
        return None
    met = {
        record.target: info.drop(baseline, record.metrics[metric]) <= allowed + 1e-12
        for record in records
        if record.metrics is not None
    }
    return BudgetRecord(metric=metric, max_drop=allowed, met=met)


def _baseline(metric: str, prepared: Prepared, original: dict[str, float]) -> tuple[MetricInfo, float]:
    """What a metric is, and the original's value."""
    info = prepared.task.metric(metric).info
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
