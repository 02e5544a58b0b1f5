"""Trials: what a search varies, and the recipe of one trial.

Trials are judged on a held-out part of the *training* data: the evaluation set stays unseen until a recipe of the front
is run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, get_args

from optuna.trial import Trial

from pipeline.data.source import Part
from pipeline.recipe import Importance, Recipe, parse_recipe

logger = logging.getLogger(__name__)

CHOOSING_SHARE = 0.2
"""Of the training data: trials are judged on it, and fitted on the rest."""

SPACE: dict[str, dict[str, Sequence[Any]]] = {
    "prune": {
        "macs_ratio": (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8),
        "importance": get_args(Importance),
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


def propose(recipe: Recipe, trial: Trial) -> Recipe:
    """The recipe with the settings of a trial in place of its own."""
    values = recipe.model_dump(mode="json", exclude_unset=True)
    for index, step in enumerate(recipe.stages):
        for name, choices in SPACE.get(step.name, {}).items():
            value = trial.suggest_categorical(f"{index}.{step.name}.{name}", choices)
            values["stages"][index][step.name][name] = as_written(name, value)
    logger.debug("trial %d has %s", trial.number, trial.params)
    return parse_recipe(values, where=f"trial {trial.number}")


def as_written(name: str, value: Any) -> Any:
    """A suggested value as the recipe writes it."""
    return [value] if name == "observers" else value


def judged_on_training_data(recipe: Recipe) -> Recipe:
    """The same recipe, fitted on one part of its training data and evaluated on the other."""
    train = recipe.data.train
    assert train is not None
    fitted, chosen_by = (
        train.model_copy(update={"part": Part(held_out=held_out, share=CHOOSING_SHARE, seed=recipe.seed)})
        for held_out in (False, True)
    )
    limit = recipe.data.calibration.limit if recipe.data.calibration is not None else None
    calibration = fitted.model_copy(update={"limit": limit})
    data = recipe.data.model_copy(update={"train": fitted, "evaluation": chosen_by, "calibration": calibration})
    model = recipe.model.model_copy(update={"expect": {}})  # what is expected holds for the evaluation set
    return recipe.model_copy(update={"data": data, "model": model})
