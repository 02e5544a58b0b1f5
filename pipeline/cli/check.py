"""``edgewright check``: everything that a run does before its first stage, and what it will do then."""

from __future__ import annotations

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.changes import Changes, Set, Stages, Targets
from pipeline.cli.output import Json, say, talking
from pipeline.cli.run import Out, RecipeFile, opened
from pipeline.report import units

if TYPE_CHECKING:
    from pipeline.execution.plan import Estimate, Plan, Step


def check(
    recipe: RecipeFile,
    set: Set = None,
    stages: Stages = None,
    targets: Targets = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Check a recipe, its model and its data as a run does, and show what the run will do. Nothing is written.

    For example:

        edgewright check recipe.yaml
        edgewright check recipe.yaml --set stages.prune.macs_ratio=0.5 --json
    """
    with talking(as_json=json):
        plan = plan_for(recipe, Changes(set or (), stages, targets), out)
    say(shown(plan, recipe), asdict(plan), as_json=json)


def plan_for(path: Path, changes: Changes, out: Path | None = None) -> Plan:
    """What a run of the recipe in a file will do.

    Raises:
        EdgewrightError: The recipe, its model or its data are wrong.
    """
    recipe = opened(path, changes)
    from pipeline.execution.plan import plan_of
    from pipeline.execution.prepare import check

    return plan_of(check(recipe, path.parent), out or Path("reports") / recipe.name)


def shown(plan: Plan, path: Path) -> str:
    """A plan for a person."""
    inputs = ", ".join(f"{name} {shape}" for name, shape in plan.inputs.items())
    rows = [
        ("model", f"{plan.network}, {units.quantity(plan.parameters)} parameters, {units.quantity(plan.macs)} MACs"),
        ("", f"{inputs} -> {', '.join(plan.outputs)}"),
        ("task", f"{plan.task}; {'; '.join(plan.budgets)}"),
        ("data", ", ".join(f"{role} {count}" for role, count in plan.data.items()) + " samples"),
        *((f"stage {number}", _written(step)) for number, step in enumerate(plan.stages, start=1)),
        *(("target", _written(step)) for step in plan.targets),
        ("time", _time(plan.estimate)),
    ]
    warnings = [f"warning: {warning}" for warning in plan.warnings]
    table = [f"{title:9}{text}" for title, text in rows]
    return "\n".join([*warnings, *table, "", f"The recipe is right. Next: edgewright run {path}"])


def _written(step: Step) -> str:
    """A stage or target with its settings, as a recipe has them, and what is to be known of it."""
    settings = ", ".join(f"{key}: {dumps(value)}" for key, value in step.settings.items())
    return " ".join(filter(None, (step.name, f"({settings})" if settings else "", step.note and f"- {step.note}")))


def _time(estimate: Estimate) -> str:
    least, most = (units.seconds(round(value)) for value in (estimate.least_s, estimate.most_s))
    return f"about {least if least == most else f'{least} to {most}'}: {estimate.method}"
