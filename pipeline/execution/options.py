"""What a recipe's options name in the model and the data: layers, inputs, axes and classes have to be there."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from torch import nn

import targets
from pipeline.core import Model, RecipeError, did_you_mean
from pipeline.data.samples import SampleSet
from pipeline.models.layers import layers_of, matching
from pipeline.recipe import Augmentation, OnnxConfig, Recipe, StageStep, TrainingConfig
from pipeline.training.augmentation import require_followed


def check_skipped(step: StageStep, module: nn.Module, index: int) -> None:
    """Refuse names and patterns that stand for no module of the network, or for nothing that the stage would change.

    Raises:
        RecipeError: Names the nearest modules.
    """
    named = {key: tuple(getattr(step.config, key, ())) for key in ("skip", "layers")}
    if not any(named.values()):
        return
    known = layers_of(module)
    for key, patterns in named.items():
        where = f"stages[{index}].{step.name}.{key}"
        found = matching(known, patterns, where=where, refusal=RecipeError)
        without = next((pattern for pattern in found if not any(known[name].weighted for name in found[pattern])), None)
        if step.name == "prune" and without is not None:
            with_weights = did_you_mean(without, [name for name, layer in known.items() if layer.weighted])
            raise RecipeError(
                f"{without!r} has no weights that could be pruned; {with_weights}", where=where, fix="leave it out"
            )


def check_options(recipe: Recipe, model: Model) -> None:
    """Refuse options of targets and trainings that this model gives no meaning to.

    Raises:
        RecipeError: Names the option.
    """
    images = [spec.name for spec in model.inputs if spec.dtype == "float32" and len(spec.shape) == 3]
    for index, step in enumerate(recipe.targets):
        where = f"targets[{index}].{step.name}"
        if getattr(step.config, "classifier", False) and not model.classes:
            raise RecipeError("a classifier needs class names", where=f"{where}.classifier", fix="add model.classes")
        if getattr(step.config, "image_input", False) and not images:
            raise RecipeError(
                "no input has the shape [channels, height, width]", where=f"{where}.image_input", fix="remove it"
            )
        if isinstance(step.config, OnnxConfig):
            _check_dynamic(step.config, model, where)
        for chip in getattr(step.config, "aot", ()) if targets.get(step.name).missing_package() is None else ():
            importlib.import_module("targets.tflite.aot").parse(chip)  # refuses a chip that LiteRT does not know
        android = getattr(step.config, "android", None)
        if android is not None and not android.benchmark_tool.is_file():
            raise RecipeError(
                f"no such file: {android.benchmark_tool}",
                where=f"{where}.android.benchmark_tool",
                fix="give the absolute path of LiteRT's benchmark_model",
            )
    for where, training in _trainings(recipe):
        if training.augment != Augmentation() and len(model.inputs[0].shape) != 3:
            raise RecipeError(
                f"only images [channels, height, width] can be augmented, and the first input is "
                f"{list(model.inputs[0].shape)}",
                where=f"{where}.augment",
                fix="remove it",
            )


def dynamic_axes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Per input, the axes besides the batch whose size onnxruntime's files keep variable."""
    configs = (step.config for step in recipe.targets if isinstance(step.config, OnnxConfig))
    return {name: axes for config in configs for name, axes in config.dynamic.items()}


def check_augmentations(recipe: Recipe, train: SampleSet | None) -> None:
    """Refuse augmentations that the labels of the training samples cannot follow.

    Raises:
        RecipeError: Names the option, and says why.
    """
    if train is None or not train.labelled or train.form is None:
        return
    for where, training in _trainings(recipe):
        require_followed(training.augment, train.form.places, where=f"{where}.augment", refusal=RecipeError)


def _check_dynamic(config: OnnxConfig, model: Model, where: str) -> None:
    shapes = {spec.name: spec.shape for spec in model.inputs}
    for name, axes in config.dynamic.items():
        if name not in shapes:
            raise RecipeError(
                f"the model has no input {name!r}; {did_you_mean(name, shapes)}",
                where=f"{where}.dynamic",
                fix="use the names in model.inputs",
            )
        beyond = next((axis for axis in axes if axis > len(shapes[name])), None)
        if beyond is not None:
            raise RecipeError(
                f"input {name!r} has no axis {beyond}: its axes are 0 (the batch) to {len(shapes[name])}",
                where=f"{where}.dynamic.{name}",
                fix="name axes that it has",
            )


def _trainings(recipe: Recipe) -> Iterable[tuple[str, TrainingConfig]]:
    """Every training that a recipe asks for, and where."""
    for index, step in enumerate(recipe.stages):
        where = f"stages[{index}].{step.name}"
        parts: dict[str, Any] = {where: step.config}
        parts |= {f"{where}.{key}": getattr(step.config, key, None) for key in ("recover", "qat")}
        yield from ((place, part) for place, part in parts.items() if isinstance(part, TrainingConfig))
