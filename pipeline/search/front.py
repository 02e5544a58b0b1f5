"""The Pareto front: the trials that no other beats in every objective, each with a recipe that can be run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment
from optuna.study import Study
from optuna.trial import TrialState

from pipeline.core.files import write_text
from pipeline.core.strict_yaml import dump_yaml
from pipeline.data.source import PATHS
from pipeline.recipe import Recipe
from pipeline.search.objectives import Objective
from pipeline.search.trials import CHOOSING_SHARE, as_written


@dataclass(frozen=True, slots=True)
class Point:
    """One trial that no other beats in every objective.

    Attributes:
        values: By objective: in the metric's unit, nanoseconds or bytes.
        shown: The same with their units.
    """

    trial: int
    values: dict[str, float]
    shown: dict[str, str]
    settings: dict[str, Any]
    recipe: str


def write_front(study: Study, recipe: Recipe, objectives: Sequence[Objective], root: Path, out: Path) -> list[Point]:
    """Write ``front.json``, ``front.html`` and ``recipes/`` under ``out``; returns the points of the front."""
    points = []
    (out / "recipes").mkdir(parents=True, exist_ok=True)
    names = [objective.name for objective in objectives]
    for trial in sorted(study.best_trials, key=lambda trial: trial.values):
        path = Path("recipes") / f"{trial.number}.yaml"
        settings = dict(trial.params)
        write_text(out / path, dump_yaml(recipe_of(settings, recipe, root, out / "recipes")))
        shown = [objective.shown(value) for objective, value in zip(objectives, trial.values, strict=True)]
        values = dict(zip(names, trial.values, strict=True))
        points.append(Point(trial.number, values, dict(zip(names, shown, strict=True)), settings, str(path)))
    content = {
        "recipe": recipe.name,
        "judged_on": f"{CHOOSING_SHARE:.0%} of the training data",
        "trials": {state.name.lower(): len(study.get_trials(deepcopy=False, states=(state,))) for state in TrialState},
        "objectives": {objective.name: objective.direction for objective in objectives},
        "front": [{"trial": p.trial, "values": p.values, "settings": p.settings, "recipe": p.recipe} for p in points],
    }
    write_text(out / "front.json", json.dumps(content, indent=2) + "\n")
    page = Environment(autoescape=True).from_string(_PAGE)
    write_text(out / "front.html", page.render({**content, "front": points}, names=names))
    return points


def recipe_of(settings: dict[str, Any], recipe: Recipe, root: Path, folder: Path) -> dict[str, Any]:
    """A front point's recipe as YAML values, with paths that start from the folder it is written to."""
    values = recipe.model_dump(mode="json", exclude_unset=True)
    for key, value in settings.items():
        index, stage, name = key.split(".")
        values["stages"][int(index)][stage][name] = as_written(name, value)
    students = [stage.get("distill", {}).get("student") or {} for stage in values["stages"]]
    sources: Iterable[dict[str, Any]] = (values["model"], *values["data"].values(), *students)
    for source in sources:
        for key in ("checkpoint", *PATHS):
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
{% for name in names %}<td>{{ point.shown[name] }}</td>{% endfor %}
<td>{% for key, value in point.settings.items() %}{{ key }}={{ value }} {% endfor %}</td></tr>
{% endfor %}</table></html>
"""
