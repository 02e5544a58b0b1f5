"""What a recipe leaves out and its model's folder says."""

from __future__ import annotations

from pipeline.models.checkpoints.huggingface import Described
from pipeline.recipe import Recipe, TaskConfig


def completed(recipe: Recipe, described: Described | None) -> Recipe:
    """The recipe with the inputs, class names and preprocessing of its model's folder, where it has none itself."""
    if described is None:
        return recipe
    model = recipe.model.model_copy(
        update={"inputs": described.inputs, "classes": recipe.model.classes or described.classes}
    )
    data = recipe.data
    if "preprocessing" not in data.model_fields_set:
        data = data.model_copy(update={"preprocessing": described.preprocessing})
    return recipe.model_copy(update={"model": model, "data": data})


def with_task(recipe: Recipe, described: Described | None, *, labelled: bool) -> Recipe:
    """The recipe with the task of its model's folder, where there are labels and it names none itself."""
    if described is None or described.task is None or recipe.task is not None or not labelled:
        return recipe
    task = TaskConfig(name=described.task, alphabet=described.alphabet)
    return recipe.model_copy(update={"task": task})
