"""Searches that cannot succeed end with the reason, and no study answers another question than it was asked."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import EdgewrightError, RecipeError, StageError
from pipeline.recipe import Recipe, parse_recipe
from pipeline.report.model import OLD_METRICS as METRICS
from pipeline.report.model import Report, read_report
from pipeline.search.objectives import parse_objective
from pipeline.search.study import search
from tests.pipeline.conftest import Project
from tests.pipeline.report.conftest import FROZEN

OBJECTIVES = ("agreement", "size:onnx")


class Runs:
    """Stands for a run: returns the frozen report, or fails, and counts."""

    def __init__(self, *failures: EdgewrightError | None, **changes: Any) -> None:
        self.calls, self._failures, self._changes = 0, failures, changes

    def __call__(self, recipe: Recipe, out: Path, *, root: Path, store: Path) -> Report:  # noqa: ARG002
        failure = self._failures[self.calls % len(self._failures)] if self._failures else None
        self.calls += 1
        if failure is not None:
            raise failure
        report = read_report(FROZEN)
        targets = tuple(
            target.model_copy(update={"metrics": {"top1": 0.9, "agreement": 0.9}, **self._changes})
            for target in report.targets
        )
        return report.model_copy(update={"targets": targets})


@pytest.fixture
def asked(project: Project) -> dict[str, Any]:
    project.recipe |= {"targets": ["onnx"], "stages": [{"prune": {"macs_ratio": 0.6}}]}
    return {"recipe": parse_recipe(project.recipe), "out": project.folder / "search", "root": project.folder}


def ask(asked: dict[str, Any], run: Runs, objectives: tuple[str, ...] = OBJECTIVES, **changes: Any) -> Any:
    found = [parse_objective(text, METRICS) for text in objectives]
    return search(**{"trials": 3, "seed": 0, **asked, **changes}, objectives=found, run=run)


def test_search_ends_with_the_reason_when_every_trial_fails(asked: dict[str, Any]) -> None:
    runs = Runs(StageError("the loss diverges", where="distill"))
    with pytest.raises(StageError, match="5 trials in a row failed, the last one with: the loss diverges"):
        ask(asked, runs)
    assert runs.calls == 5


def test_search_goes_on_when_only_some_trials_fail(asked: dict[str, Any]) -> None:
    runs = Runs(StageError("unlucky"), None)
    assert ask(asked, runs)
    assert runs.calls == 6


def test_search_ends_at_once_when_no_target_gives_an_objective(asked: dict[str, Any]) -> None:
    runs = Runs(latency=())
    with pytest.raises(RecipeError, match="no target gives 'latency:onnx'"):
        ask(asked, runs, ("agreement", "latency:onnx"))
    assert runs.calls == 1


def test_search_refuses_before_any_trial_when_an_objective_names_another_target(asked: dict[str, Any]) -> None:
    runs = Runs()
    with pytest.raises(RecipeError, match="'size:tflite' asks for a target that the recipe does not name"):
        ask(asked, runs, ("agreement", "size:tflite"))
    assert runs.calls == 0


def test_search_refuses_to_continue_a_study_of_another_recipe_or_other_objectives(
    asked: dict[str, Any], project: Project
) -> None:
    ask(asked, Runs())
    runs = Runs()
    with pytest.raises(RecipeError, match="was made for other objectives"):
        ask(asked, runs, OBJECTIVES[::-1], trials=4)
    other = parse_recipe(project.recipe | {"seed": 7})
    with pytest.raises(RecipeError, match="was made for another recipe"):
        ask(asked, runs, recipe=other, trials=4)
    assert runs.calls == 0
    ask(asked, runs, trials=4)
    assert runs.calls == 1


def test_search_says_so_when_its_database_is_locked(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.search.study._OPENINGS", 2)
    ask(asked, Runs(), trials=1)
    path = asked["out"] / "study.db"
    with sqlite3.connect(path, isolation_level=None) as other:
        for lock in ("BEGIN EXCLUSIVE", "BEGIN IMMEDIATE"):
            other.execute(lock)
            with pytest.raises(RecipeError, match=r"database is locked|database fails|cannot be opened"):
                ask(asked, Runs(), trials=2, storage=f"sqlite:///{path}?timeout=0.2")
            other.execute("ROLLBACK")
    ask(asked, Runs(), trials=2)
