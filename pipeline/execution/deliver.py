"""Delivery: the artifacts of every target, their benchmark, and the report on all of it."""

from __future__ import annotations

import logging
import platform
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pipeline.core import EdgewrightError, Model, first_line
from pipeline.core.files import atomic_write, write_bytes
from pipeline.execution.keys import export_key, package_versions
from pipeline.execution.prepare import Prepared
from pipeline.execution.store import Store
from pipeline.machine.processor import all_cores, cpu_features, cpu_name
from pipeline.progress import announced
from pipeline.recipe import Recipe
from pipeline.report.model import (
    BudgetRecord,
    DataRecord,
    Environment,
    FailureRecord,
    OriginalRecord,
    Report,
    RunInfo,
    TargetRecord,
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
        original, records = benchmark(model, exported, prepared.evaluation, root=out)
    return _report(prepared, model, original, records, start)


def deliver_unfinished(
    prepared: Prepared, model: Model, stage: str, error: Exception, out: Path, start: Start
) -> Report:
    """Report on a run whose stage failed: the original, and the stages before that one.

    Args:
        model: The model that the failed stage was given.
    """
    reason = f"not reached: stage {stage} failed"
    missing = [Exported(target=target, status="skipped", reason=reason) for target in prepared.targets]
    original, records = benchmark(model, missing, prepared.evaluation, root=out)
    text = str(error) if isinstance(error, EdgewrightError) else f"{type(error).__name__}: {first_line(error)}"
    return _report(prepared, model, original, records, start, FailureRecord(stage=stage, reason=text))


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
            role: DataRecord(name=samples.name, samples=len(samples), sha256=samples.sha256)
            for role, samples in sets.items()
            if samples is not None
        },
        original=original,
        stages=model.history,
        budget=_budget(recipe, original.metrics, records),
        targets=records,
        failure=failure,
    )
    return report.model_copy(update={"verdict": judge(report)})


def _budget(recipe: Recipe, original: dict[str, float], records: tuple[TargetRecord, ...]) -> BudgetRecord:
    metric = recipe.budget.metric
    baseline = original[metric] if metric == "top1" else 1.0
    met = {
        record.target: record.metrics[metric] >= baseline - recipe.budget.max_drop
        for record in records
        if record.metrics is not None
    }
    return BudgetRecord(metric=metric, max_drop=recipe.budget.max_drop, met=met)


def _environment() -> Environment:
    return Environment(
        packages=package_versions(),
        cpu=cpu_name(),
        cpu_features=cpu_features(),
        cores=all_cores(),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )
