"""Search: many variants of one recipe, and which of them no other beats (Optuna, https://optuna.org).

Every trial is a whole run. Trials share their stages through the stage store, so what two of them have in common is
computed once. Several workers, on one machine or many, may share a study through its storage.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import MaxTrialsCallback, Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from pipeline.core import EdgewrightError, RecipeError, StageError, first_line
from pipeline.core.files import writing
from pipeline.recipe import Recipe
from pipeline.report.model import Report
from pipeline.search.front import Point, write_front
from pipeline.search.objectives import Objective
from pipeline.search.trials import SPACE, judged_on_training_data, propose

_HEARTBEAT_S = 30
_OPENINGS = 10
_FAILURES_IN_A_ROW = 5

logger = logging.getLogger(__name__)


class Run(Protocol):
    """What applies a recipe: `pipeline.execution.apply.run`."""

    def __call__(self, recipe: Recipe, out: Path, *, root: Path, store: Path) -> Report: ...


def search(
    recipe: Recipe,
    out: Path,
    *,
    run: Run,
    trials: int,
    objectives: Sequence[Objective],
    root: Path = Path(),
    storage: str | None = None,
    seed: int | None = None,
) -> list[Point]:
    """Run trials until the study has ``trials`` finished ones, and write its Pareto front.

    A search that is interrupted and run again, or run by several workers at once, continues the same study: a trial
    whose worker died is queued again, and no trial is run twice.

    Args:
        run: Applies the recipe of a trial.
        out: ``front.json``, ``front.html`` and ``recipes/`` are written here, and the stage store is kept here.
        root: What the recipe's relative paths start from.
        storage: SQLAlchemy's URL of a database that workers share; an SQLite file under ``out`` when absent.
        seed: Of the sampler. Leave it out when several workers share the study, or they propose the same trials.

    Raises:
        RecipeError: The recipe has no training data to choose by, no stage to vary, or no target that gives an
            objective; the study was made for something else; or its database is locked.
        StageError: No trial succeeds.
    """
    train = recipe.data.train
    if train is None:
        raise RecipeError("a search chooses by training data", where="data.train", fix="add data.train")
    varied = {step.name for step in recipe.stages} & SPACE.keys()
    if not varied:
        raise RecipeError("has no stage to vary", where="stages", fix=f"add one of {', '.join(SPACE)}")
    _require_targets(recipe, objectives)
    if storage is None:
        _make(out)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    watch = _Watch()

    def trial_values(trial: Trial) -> list[float]:
        trial.set_user_attr("worker", f"{platform.node()}:{os.getpid()}")
        judged = judged_on_training_data(propose(recipe, trial))
        with watch.trial():
            report = run(judged, out / "trials" / str(trial.number), root=root, store=out / ".store")
        values = [watch.value(objective, report) for objective in objectives]
        logger.debug("trial %d reached %s", trial.number, values)
        return values

    with _database(storage):
        study = _study(recipe, objectives, storage or f"sqlite:///{out / 'study.db'}?timeout=60", seed)
        _make(out)  # only once the given storage has been opened
        if len(_finished(study)) < trials:
            enough = MaxTrialsCallback(trials)
            study.optimize(trial_values, callbacks=[enough, watch.stop_when_hopeless], catch=(EdgewrightError,))
        if watch.hopeless is not None:
            raise watch.hopeless
        return write_front(study, recipe, objectives, root, out)


def _make(folder: Path) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _study(recipe: Recipe, objectives: Sequence[Objective], url: str, seed: int | None) -> Study:
    """The study in a database, made where it is missing."""
    study = optuna.create_study(
        storage=open_storage(url),
        study_name=recipe.name,
        directions=[objective.direction for objective in objectives],
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=seed),
    )
    _require_same_question(study, recipe, objectives)
    return study


class _Watch:
    """Ends a search that cannot succeed.

    Attributes:
        hopeless: Why the search cannot go on.
    """

    def __init__(self) -> None:
        self.hopeless: EdgewrightError | None = None
        self._failures = 0

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Count failures in a row, which must not go on for ever."""
        try:
            yield
        except EdgewrightError as error:
            self._failures += 1
            if self._failures == _FAILURES_IN_A_ROW:
                self.hopeless = StageError(
                    f"{self._failures} trials in a row failed, the last one with: {error.problem}",
                    where=error.where or "search",
                    fix=error.fix or "run the recipe by itself first",
                )
            raise
        self._failures = 0

    def value(self, objective: Objective, report: Report) -> float:
        """An objective's value; one that a finished run does not have, no other run will have."""
        try:
            return objective.value(report)
        except RecipeError as error:
            if report.verdict is None or not any(record.status == "failed" for record in report.targets):
                self.hopeless = error
            raise

    def stop_when_hopeless(self, study: Study, _trial: FrozenTrial) -> None:
        """Optuna calls this after each trial."""
        if self.hopeless is not None:
            study.stop()


def _require_targets(recipe: Recipe, objectives: Sequence[Objective]) -> None:
    named = {step.name for step in recipe.targets}
    if not named:
        raise RecipeError("a search judges targets, and the recipe names none", where="targets", fix="add targets")
    for objective in objectives:
        if objective.target is not None and objective.target not in named:
            raise RecipeError(
                f"objective {objective.name!r} asks for a target that the recipe does not name",
                where="search",
                fix=f"use one of {', '.join(sorted(named))}, or add it to targets",
            )


def _require_same_question(study: Study, recipe: Recipe, objectives: Sequence[Objective]) -> None:
    """Refuse to mix trials of other recipes, or other objectives, with this search's."""
    asked = {
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
        "objectives": [objective.name for objective in objectives],
    }
    before = study.user_attrs.get("asked")
    if before is None and not study.get_trials(deepcopy=False):
        study.set_user_attr("asked", asked)
    elif before != asked:
        part = "other objectives" if before is not None and before["recipe"] == asked["recipe"] else "another recipe"
        raise RecipeError(
            f"the study {study.study_name!r} was made for {part}",
            where="search",
            fix="give another --out (or --storage), or another name in the recipe",
        )


@contextmanager
def _database(storage: str | None) -> Iterator[None]:
    """One error for whatever the study's database refuses; Optuna trips over some refusals itself."""
    try:
        yield
    except (DBAPIError, StorageInternalError, UnboundLocalError) as error:
        raise RecipeError(
            f"the study's database fails: {first_line(error)}",
            where=storage or "search",
            fix="check that nothing keeps it locked; the same command then goes on",
        ) from error


def open_storage(url: str) -> RDBStorage:
    """The database of a study; its tables are created where they are missing.

    When workers start together, all find the tables missing, and all but one fail to create them. They try again.

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
                heartbeat_stale_trial_callback=_queue_again,
            )
        except (DBAPIError, StorageInternalError) as error:
            failures += 1
            if failures == _OPENINGS:
                problem = f"the study's database cannot be opened: {' '.join(str(error).split())}"
                raise RecipeError(
                    problem, where="search", fix="check the storage's URL, and that the database runs"
                ) from error
            time.sleep(0.1 * failures)
        except (SQLAlchemyError, ImportError) as error:
            fix = "PostgreSQL: pip install edgewright[search], then postgresql+psycopg://user@host/database"
            raise RecipeError(f"no driver for such a database: {error}", where="search", fix=fix) from error


def _queue_again(study: Study, trial: FrozenTrial) -> None:
    """Queue the settings of a trial whose worker died."""
    if trial.params:
        study.enqueue_trial(trial.params, user_attrs={"instead_of": trial.number})


def _finished(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
