"""Search: many variants of one recipe, and which of them no other beats (Optuna, https://optuna.org).

Every trial is a whole run. Its stages are shared with other trials through the stage store, so what two of them have
in common is computed once. Trials are judged on a held-out part of the *training* data: the evaluation set stays unseen
until a recipe of the front is run. Several workers, on one machine or many, may share a study through its storage.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml
from jinja2 import Environment
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import MaxTrialsCallback, Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from pipeline.core import EdgewrightError, Preprocessing, RecipeError, Setting, TensorSpec
from pipeline.core.files import write_text
from pipeline.data.samples import SampleSet, open_samples
from pipeline.execution.apply import run
from pipeline.recipe import DataSource, Recipe, parse_recipe
from pipeline.report.model import Report
from pipeline.target import Measured

_HEARTBEAT_S = 30
_OPENINGS = 10
_CHOOSING_SHARE = 0.2

SPACE: dict[str, dict[str, Sequence[Any]]] = {
    "prune": {
        "macs_ratio": (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8),
        "importance": ("l1", "l2", "bn_scale", "taylor", "activation"),
        "allocation": ("importance", "sensitivity"),
    },
    "distill": {
        "temperature": (1.0, 2.0, 4.0, 8.0),
        "alpha": (0.5, 0.7, 0.9, 1.0),
        "learning_rate": (0.01, 0.02, 0.05, 0.1),
    },
    "quantize": {"observers": ("minmax", "output_mse")},  # one per trial; quantize itself chooses among several
}
"""What is tried, per stage. Values are discrete, so that trials meet again in the stage store."""


class Objective(Setting):
    """One thing to improve: ``top1`` or ``agreement`` (the worst target's), ``latency:onnx``, ``size:tflite`` …"""

    kind: str
    target: str | None = None

    @property
    def name(self) -> str:
        """How it was written."""
        return self.kind if self.target is None else f"{self.kind}:{self.target}"

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """What Optuna is told."""
        return "minimize" if self.kind in ("latency", "size") else "maximize"

    def value(self, report: Report) -> float:
        """The objective's value in a report: a ratio, nanoseconds or bytes.

        Raises:
            RecipeError: The report has no such value, and says why.
        """
        records = [record for record in report.targets if self.target in (None, record.target)]
        found: list[float] = []
        for record in records:
            if self.kind == "size" and record.artifact is not None:
                found.append(record.artifact.size_bytes)
            elif self.kind == "latency":
                found += [item.median_ns for item in record.latency if isinstance(item, Measured) and item.threads == 1]
            elif self.kind in (record.metrics or {}):
                assert record.metrics is not None
                found.append(record.metrics[self.kind])
        if not found:
            reasons = "; ".join(f"{record.target}: {record.reason or record.metrics_skipped}" for record in records)
            raise RecipeError(
                f"no target gives {self.name!r} ({reasons})", where="search", fix="choose another objective"
            )
        return max(found) if self.direction == "minimize" else min(found)


def parse_objective(text: str) -> Objective:
    """``latency:onnx`` as an `Objective`.

    >>> parse_objective("latency:onnx").direction
    'minimize'
    """
    kind, _, target = text.partition(":")
    if kind not in ("top1", "agreement", "latency", "size") or (kind in ("latency", "size") and not target):
        raise RecipeError(
            f"there is no objective {text!r}",
            where="search",
            fix="use top1, agreement, latency:<target> or size:<target>",
        )
    return Objective(kind=kind, target=target or None)


@dataclass(frozen=True, slots=True)
class Point:
    """One trial that no other beats in every objective."""

    trial: int
    values: dict[str, float]
    settings: dict[str, Any]
    recipe: str


def search(
    recipe: Recipe,
    out: Path,
    *,
    trials: int,
    objectives: Sequence[Objective],
    root: Path = Path(),
    storage: str | None = None,
    seed: int | None = None,
) -> list[Point]:
    """Run trials until the study has ``trials`` finished ones, and write its Pareto front.

    Interrupted and run again, or run by several workers at once, it goes on with the same study: a trial whose worker
    died is given out again, and none is run twice.

    Args:
        out: ``front.json``, ``front.html`` and ``recipes/`` are written here, and the stage store is kept here.
        root: What the recipe's relative paths start from.
        storage: SQLAlchemy's URL of a database that workers share; an SQLite file under ``out`` when absent.
        seed: Of the sampler. Leave it out when several workers share the study, or they propose the same trials.

    Raises:
        RecipeError: The recipe has no training data to choose by, or no stage to vary.
    """
    train = recipe.data.train
    if train is None:
        raise RecipeError("a search chooses by training data", where="data.train", fix="add data.train")
    varied = {step.name for step in recipe.stages} & SPACE.keys()
    if not varied:
        raise RecipeError("has no stage to vary", where="stages", fix=f"add one of {', '.join(SPACE)}")
    out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=open_storage(storage or f"sqlite:///{out / 'study.db'}?timeout=60"),
        study_name=recipe.name,
        directions=[objective.direction for objective in objectives],
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=seed),
    )

    def trial_values(trial: Trial) -> list[float]:
        trial.set_user_attr("worker", f"{platform.node()}:{os.getpid()}")
        varied_recipe = propose(recipe, trial)
        judged = _judged_on_training_data(varied_recipe, root)
        report = run(judged, out / "trials" / str(trial.number), root=root, store=out / ".store")
        return [objective.value(report) for objective in objectives]

    if len(_finished(study)) < trials:
        study.optimize(trial_values, callbacks=[MaxTrialsCallback(trials)], catch=(EdgewrightError,))
    return _write_front(study, recipe, objectives, root, out)


def open_storage(url: str) -> RDBStorage:
    """The database of a study, its tables made where they are missing.

    Workers that start together all find the tables missing, and all but one fail to make them: those look again.

    Raises:
        RecipeError: There is no such database, or no driver for it.
    """
    failures = 0
    while True:
        try:
            return RDBStorage(
                url,
                heartbeat_interval=_HEARTBEAT_S,
                grace_period=2 * _HEARTBEAT_S,
                heartbeat_stale_trial_callback=_give_out_again,
            )
        except (DBAPIError, StorageInternalError) as error:
            failures += 1
            if failures == _OPENINGS:
                problem = f"the study's database cannot be opened: {' '.join(str(error).split())}"
                raise RecipeError(problem, where="search", fix="check the storage's URL, and that it runs") from error
            time.sleep(0.1 * failures)
        except (SQLAlchemyError, ImportError) as error:
            fix = "PostgreSQL: pip install edgewright[search], then postgresql+psycopg://user@host/database"
            raise RecipeError(f"no driver for such a database: {error}", where="search", fix=fix) from error


def _give_out_again(study: Study, trial: FrozenTrial) -> None:
    """Queue the settings of a trial whose worker died."""
    if trial.params:
        study.enqueue_trial(trial.params, user_attrs={"instead_of": trial.number})


def propose(recipe: Recipe, trial: Trial) -> Recipe:
    """The recipe with the settings of a trial in place of its own."""
    values = recipe.model_dump(mode="json", exclude_unset=True)
    for index, step in enumerate(recipe.stages):
        for name, choices in SPACE.get(step.name, {}).items():
            value = trial.suggest_categorical(f"{index}.{step.name}.{name}", choices)
            values["stages"][index][step.name][name] = _setting(name, value)
    return parse_recipe(values, where=f"trial {trial.number}")


def _setting(name: str, value: Any) -> Any:
    """A suggested value as the recipe writes it."""
    return [value] if name == "observers" else value


def _judged_on_training_data(recipe: Recipe, root: Path) -> Recipe:
    """The same recipe, fitted on one part of its training data and evaluated on the other."""
    train = recipe.data.train
    assert train is not None
    parts = {
        name: DataSource(
            factory="pipeline.search.study:part_of_training_data",
            kwargs={
                "source": train.model_dump(mode="json", exclude_none=True, exclude_defaults=True),
                "inputs": [spec.model_dump(mode="json") for spec in recipe.model.inputs],
                "root": str(root.resolve()),
                "choosing": choosing,
                "seed": recipe.seed,
            },
        )
        for name, choosing in (("train", False), ("evaluation", True))
    }
    limit = recipe.data.calibration.limit if recipe.data.calibration is not None else None
    calibration = parts["train"].model_copy(update={"limit": limit})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={**parts, "calibration": calibration})})


class _Part:
    """Some stored samples as a torch Dataset, before preprocessing."""

    def __init__(self, samples: SampleSet) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, position: int) -> tuple[Any, ...]:
        arrays, labels = self._samples.source.read([self._samples.indices[position]])
        return (*(array[0] for array in arrays), *(() if labels is None else (int(labels[0]),)))


def part_of_training_data(
    source: dict[str, Any], inputs: list[dict[str, Any]], root: str, choosing: bool, seed: int
) -> _Part:
    """The part of the training data that trials are judged on, or the rest; a recipe's data factory."""
    specs = tuple(TensorSpec.model_validate(spec) for spec in inputs)
    samples = open_samples(DataSource.model_validate(source), specs, Preprocessing(), name="train", root=Path(root))
    kept, chosen_by = samples.split(round(len(samples) * _CHOOSING_SHARE), seed)
    return _Part(chosen_by if choosing else kept)


def _finished(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _write_front(study: Study, recipe: Recipe, objectives: Sequence[Objective], root: Path, out: Path) -> list[Point]:
    points = []
    (out / "recipes").mkdir(parents=True, exist_ok=True)
    names = [objective.name for objective in objectives]
    for trial in sorted(study.best_trials, key=lambda trial: trial.values):
        path = Path("recipes") / f"{trial.number}.yaml"
        settings = dict(trial.params)
        write_text(out / path, yaml.safe_dump(_recipe_of(settings, recipe, root, out / "recipes"), sort_keys=False))
        points.append(Point(trial.number, dict(zip(names, trial.values, strict=True)), settings, str(path)))
    content = {
        "recipe": recipe.name,
        "judged_on": f"{_CHOOSING_SHARE:.0%} of the training data",
        "trials": {state.name.lower(): len(study.get_trials(deepcopy=False, states=(state,))) for state in TrialState},
        "objectives": {objective.name: objective.direction for objective in objectives},
        "front": [{"trial": p.trial, "values": p.values, "settings": p.settings, "recipe": p.recipe} for p in points],
    }
    write_text(out / "front.json", json.dumps(content, indent=2) + "\n")
    write_text(out / "front.html", Environment(autoescape=True).from_string(_PAGE).render(content, names=names))
    return points


def _recipe_of(settings: dict[str, Any], recipe: Recipe, root: Path, folder: Path) -> dict[str, Any]:
    """A front point's recipe as YAML values, with paths that start from the folder it is written to."""
    values = recipe.model_dump(mode="json", exclude_unset=True)
    for key, value in settings.items():
        index, stage, name = key.split(".")
        values["stages"][int(index)][stage][name] = _setting(name, value)
    students = [stage.get("distill", {}).get("student") or {} for stage in values["stages"]]
    sources: Iterable[dict[str, Any]] = (values["model"], *values["data"].values(), *students)
    for source in sources:
        for key in ("checkpoint", "npz", "folder"):
            if source.get(key) is not None:
                source[key] = os.path.relpath((root / source[key]).resolve(), folder.resolve())
    return values


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ recipe }}: Pareto front</title>
<style>
body { font: 15px system-ui; margin: 2rem }
td, th { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ccc }
</style>
<h1>{{ recipe }}: Pareto front</h1>
<p>{{ trials.complete }} finished trials, {{ trials.fail }} failed; judged on {{ judged_on }}.</p>
<table>
<tr><th>trial</th>{% for name in names %}<th>{{ name }} ({{ objectives[name] }})</th>{% endfor %}<th>settings</th></tr>
{% for point in front %}<tr><td><a href="{{ point.recipe }}">{{ point.trial }}</a></td>
{% for name in names %}<td>{{ point["values"][name] }}</td>{% endfor %}
<td>{% for key, value in point.settings.items() %}{{ key }}={{ value }} {% endfor %}</td></tr>
{% endfor %}</table></html>
"""
