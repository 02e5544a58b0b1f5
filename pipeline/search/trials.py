"""Trials: what a search varies, and the recipe of one trial.

Trials are judged on a held-out part of the *training* data: the evaluation set stays unseen until a recipe of the front
is run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from optuna.trial import Trial

from pipeline.core import Preprocessing, TensorSpec
from pipeline.core.arrays import Array
from pipeline.data.open import open_samples
from pipeline.data.samples import SampleSet, Source
from pipeline.data.source import DataSource
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


def judged_on_training_data(recipe: Recipe, root: Path) -> Recipe:
    """The same recipe, fitted on one part of its training data and evaluated on the other."""
    train = recipe.data.train
    assert train is not None
    parts = {
        name: DataSource(
            factory="pipeline.search.study:part_of_training_data",
            kwargs={
                "source": train.model_dump(mode="json", exclude_unset=True),
                "inputs": [
                    spec.model_dump(mode="json") for spec in recipe.model.inputs if spec.name not in recipe.model.states
                ],
                "classes": list(recipe.model.classes),
                "root": str(root.resolve()),
                "choosing": choosing,
                "seed": recipe.seed,
            },
            preprocessing=train.preprocessing,
        )
        for name, choosing in (("train", False), ("evaluation", True))
    }
    limit = recipe.data.calibration.limit if recipe.data.calibration is not None else None
    calibration = parts["train"].model_copy(update={"limit": limit})
    data = recipe.data.model_copy(update={**parts, "calibration": calibration})
    model = recipe.model.model_copy(update={"expect": {}})  # what is expected holds for the evaluation set
    return recipe.model_copy(update={"data": data, "model": model})


class _Part(Source):
    """Some samples of a source."""

    def __init__(self, samples: SampleSet) -> None:
        source = samples.source
        self.where, self.labelled, self.labels_where = source.where, source.labelled, source.labels_where
        self.classes, self.kind, self.one_by_one = source.classes, source.kind, source.one_by_one
        self.box_format, self.notes = source.box_format, source.notes
        self._source, self._indices = source, samples.indices

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Any]:
        self._source.upright, self._source.sampling_rate = self.upright, self.sampling_rate
        return self._source.read([self._indices[index] for index in indices])

    def input_place(self, index: int) -> str:
        return self._source.input_place(self._indices[index])

    def place_of(self, index: int) -> str:
        return self._source.place_of(self._indices[index])


def part_of_training_data(
    source: dict[str, Any], inputs: list[dict[str, Any]], classes: list[str], root: str, choosing: bool, seed: int
) -> _Part:
    """The part of the training data that trials are judged on, or the rest; a recipe's data factory."""
    specs = tuple(TensorSpec.model_validate(spec) for spec in inputs)
    opened = DataSource.model_validate(source)
    samples = open_samples(opened, specs, Preprocessing(), name="train", root=Path(root), classes=classes)
    kept, chosen_by = samples.split(round(len(samples) * CHOOSING_SHARE), seed)
    return _Part(chosen_by if choosing else kept)
