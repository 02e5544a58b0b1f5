"""Search: many variants of one recipe, and which of them no other beats (Optuna, https://optuna.org).

Every trial is a whole run. Trials share their stages through the stage store, so what two of them have in common is
computed once. Several workers, on one machine or many, may share a study through its storage.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import MaxTrialsCallback, Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from pipeline.core import EdgewrightError, RecipeError
from pipeline.recipe import Recipe
from pipeline.report.model import Report
from pipeline.search.front import Point, write_front
from pipeline.search.objectives import Objective
from pipeline.search.trials import SPACE, judged_on_training_data, propose
from pipeline.search.trials import part_of_training_data as part_of_training_data  # recipes of trials name it here

_HEARTBEAT_S = 30
_OPENINGS = 10

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
        judged = judged_on_training_data(propose(recipe, trial), root)
        report = run(judged, out / "trials" / str(trial.number), root=root, store=out / ".store")
        values = [objective.value(report) for objective in objectives]
        logger.debug("trial %d reached %s", trial.number, values)
        return values

    if len(_finished(study)) < trials:
        study.optimize(trial_values, callbacks=[MaxTrialsCallback(trials)], catch=(EdgewrightError,))
    return write_front(study, recipe, objectives, root, out)


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
