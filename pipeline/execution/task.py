"""The task of a run, which the recipe names or the model and its labels suggest, and the budgets on its metrics."""

from __future__ import annotations

from pathlib import Path

from pipeline.core import Model, RecipeError, StageError, did_you_mean
from pipeline.data.samples import SampleSet
from pipeline.recipe import Budget, Recipe, TaskConfig
from pipeline.tasks.lookup import built_in, for_task, own, suggested
from pipeline.tasks.prediction import outputs_of
from pipeline.tasks.task import Example, Task

NOT_ASKED = (
    "No task metric was asked for: accuracy is fidelity, how closely each model follows the original. Name a task and "
    "labels in the recipe to measure more."
)


def settle_task(
    recipe: Recipe, model: Model, sets: dict[str, SampleSet], root: Path
) -> tuple[Task, dict[str, SampleSet]]:
    """The task, and the sets of samples with labels in its form.

    Raises:
        RecipeError: There is no such task, or the model's outputs do not suit it, or a part of the user's fails.
        StageError: The original's outputs are not finite.
    """
    example = Example(
        inputs=model.examples,
        outputs=outputs_of(model.module, model.examples),
        alphabet="" if recipe.task is None else recipe.task.alphabet,
    )
    if not all(output.isfinite().all() for output in example.outputs if output.is_floating_point()):
        raise StageError(
            "the original model's outputs are not finite",
            where=str(recipe.model.checkpoint),
            fix="give the weights of a trained model, and the preprocessing that it was trained with",
        )
    task = _task(recipe.task, example, labelled=sets["evaluation"].labelled, root=root)
    return task, {role: for_task(samples, task) for role, samples in sets.items()}


def _task(config: TaskConfig | None, example: Example, *, labelled: bool, root: Path) -> Task:
    if config is None:
        return suggested(example, labelled=labelled)
    base = built_in(config.name or "fidelity", example)
    return own(
        base,
        metrics=config.metrics,
        postprocess=config.postprocess,
        loss=config.loss,
        example=example,
        root=root,
    )


def settle_budgets(recipe: Recipe, task: Task, evaluation: SampleSet) -> tuple[Budget, ...]:
    """The budgets, each with the name of its metric.

    Raises:
        RecipeError: A budget's metric is not the task's, or needs labels that the evaluation set does not have.
    """
    usable = [spec.name for spec in task.usable(labelled=evaluation.labelled)]
    known = [spec.name for spec in task.metrics]
    if not usable:
        raise RecipeError(
            f"the task {task.name} needs labels, and the evaluation set has none",
            where="data.evaluation",
            fix="name its labels (data.evaluation.labels), or remove the task to measure fidelity",
        )
    for budget in recipe.budget:
        if budget.metric in usable or budget.metric is None:
            continue
        if budget.metric in known or budget.metric == "top1":
            raise RecipeError(
                f"{budget.metric} needs labels, and the evaluation set has none"
                if not evaluation.labelled
                else f"metric {budget.metric!r} needs class scores (N, classes) as the first output",
                where="budget.metric",
                fix="name its labels array (data.evaluation.labels)"
                if not evaluation.labelled
                else f"use one of {', '.join(usable)}, or name the model's task",
            )
        raise RecipeError(
            f"there is no metric {budget.metric!r} in the task {task.name}; {did_you_mean(budget.metric, known)}",
            where="budget.metric",
            fix=f"use one of {', '.join(usable)}",
        )
    for index, budget in enumerate(recipe.budget):
        spec = task.metric(budget.metric or usable[0])
        if spec.info.unit == "ratio" and budget.max_drop is not None and budget.max_drop > 1:
            where = "budget.max_drop" if len(recipe.budget) == 1 else f"budget[{index}].max_drop"
            fix = "0.01 is one percentage point"
            raise RecipeError(f"{budget.max_drop:g} is more than a ratio can fall", where=where, fix=fix)
    return tuple(budget.model_copy(update={"metric": budget.metric or usable[0]}) for budget in recipe.budget)
