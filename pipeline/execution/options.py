"""What a recipe's options name in the model and the data: layers, inputs, axes and classes have to be there."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from torch.fx import GraphModule

import targets
from pipeline.core import Model, RecipeError, did_you_mean
from pipeline.core.callables import parents
from pipeline.data.samples import SampleSet
from pipeline.recipe import Augmentation, OnnxConfig, Recipe, StageStep, TrainingConfig
from pipeline.training.augmentation import require_followed


def check_skipped(step: StageStep, module: nn.Module, index: int) -> None:
    """Refuse names in ``skip`` that are no modules of the network, or hold nothing that the stage would change.

    Raises:
        RecipeError: Names the nearest modules.
    """
    known = {name: holds_weights for name, holds_weights in _modules(module) if name}
    for name in getattr(step.config, "skip", ()):
        where = f"stages[{index}].{step.name}.skip"
        if name not in known:
            raise RecipeError(
                f"the model has no module {name!r}; {did_you_mean(name, known)}",
                where=where,
                fix="name modules as model.named_modules() does",
            )
        if step.name == "prune" and not known[name]:
            with_weights = did_you_mean(name, [name for name, holds in known.items() if holds])
            raise RecipeError(
                f"{name!r} has no weights that could be pruned; {with_weights}", where=where, fix="leave it out"
            )


def _modules(module: nn.Module) -> Iterator[tuple[str, bool]]:
    """The names of all modules, and whether each has weights. A program keeps names only, in its operators."""
    for name, part in module.named_modules():
        yield name, any(True for _ in part.parameters())
    if isinstance(module, GraphModule):
        for node in module.graph.nodes:
            for name, _ in node.meta.get("nn_module_stack", {}).values():
                yield from ((parent, True) for parent in parents(str(name)))


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
