"""The task of a run, which the recipe names or the model and its labels suggest, and the budgets on its metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pipeline.core import DataError, Model, RecipeError, StageError, did_you_mean
from pipeline.data.samples import EXAMPLES, SampleSet
from pipeline.recipe import Budget, Recipe, TaskConfig
from pipeline.tasks.evaluation import evaluate
from pipeline.tasks.lookup import built_in, for_task, suggested
from pipeline.tasks.own import own, try_metrics
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
        swap=None if recipe.task is None else recipe.task.swap,
        data_range=None if recipe.task is None else recipe.task.data_range,
        classes=len(recipe.model.classes) or None,
    )
    if not all(output.isfinite().all() for output in example.outputs if output.is_floating_point()):
        raise StageError(
            "the original model's outputs are not finite",
            where=str(recipe.model.name),
            fix="give the weights of a trained model, and the preprocessing that it was trained with",
        )
    task = _task(recipe.task, example, labelled=sets["evaluation"].labelled, root=root)
    _require_class_names(recipe, task, example)
    sets = {role: for_task(samples, task) for role, samples in sets.items()}
    if recipe.task is not None:
        _require_metrics(task, model, sets["evaluation"])
    return task, sets


def _require_metrics(task: Task, model: Model, evaluation: SampleSet) -> None:
    """The task's metrics give finite numbers for the original: of a few samples or, where these are too few, of all."""
    batch = next(evaluation.take(EXAMPLES).batches(EXAMPLES))
    example = Example(inputs=batch.inputs, outputs=outputs_of(model.module, batch.inputs))
    if odd := try_metrics(task, example, batch.labels):
        values = evaluate(model.module, evaluation, task)
        for name in odd:
            if not math.isfinite(values[name]):
                problem = f"is {values[name]} for the original on all {len(evaluation)} samples"
                raise RecipeError(problem, where=f"task.metrics: {name}", fix="correct the metric, or its labels")


def asked_for(config: TaskConfig, model: Model, samples: SampleSet, root: Path = Path()) -> Task:
    """The task of that configuration, for a model's outputs on its samples.

    Raises:
        RecipeError: There is no such task, or the model's outputs do not suit it.
    """
    example = Example(
        inputs=model.examples,
        outputs=outputs_of(model.reference, model.examples),
        alphabet=config.alphabet,
        swap=config.swap,
        data_range=config.data_range,
        classes=len(model.classes) or None,
    )
    return _task(config, example, labelled=samples.labelled, root=root)


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


def _require_class_names(recipe: Recipe, task: Task, example: Example) -> None:
    """Refuse names of other classes than the task tells apart, and Core ML's classifier for other models."""
    names, known = recipe.model.classes, None if task.labels is None else task.labels.classes
    if names and known is not None and len(names) != known:
        problem = f"names {len(names)} classes, and the task {task.name} finds {known} in the model's outputs"
        raise RecipeError(problem, where="model.classes", fix="name every class of the model, in order")
    for index, step in enumerate(recipe.targets):
        if getattr(step.config, "classifier", False) and example.first.ndim != 2:
            where = f"targets[{index}].{step.name}.classifier"
            raise RecipeError("the first output is not (N, classes)", where=where, fix="remove it")


def require_all_classes(recipe: Recipe, task: Task, sets: dict[str, SampleSet]) -> None:
    """Refuse sets that name fewer or more classes than the model has, where the recipe does not name them.

    Raises:
        DataError: The numbers of their classes are not known.
    """
    known = None if task.labels is None else task.labels.classes
    for samples in sets.values():
        found = samples.source.classes if samples.labelled and not recipe.model.classes else ()
        if found and known is not None and len(found) != known:
            problem = f"names {len(found)} classes ({_listed(found)}), but the model has {known} classes"
            fix = "list every class in model.classes, in the order of the model's outputs"
            raise DataError(f"{problem}, so their numbers are not known", where=samples.source.where, fix=fix)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def settle_budgets(asked: tuple[Budget, ...], task: Task, evaluation: SampleSet) -> tuple[Budget, ...]:
    """The budgets, each with the name of its metric.

    Raises:
        RecipeError: A budget's metric is not the task's, or needs labels that the evaluation set does not have, or two
            budgets are of one metric.
    """
    usable = [spec.name for spec in task.usable(labelled=evaluation.labelled)]
    if not usable:
        raise RecipeError(
            f"the task {task.name} needs labels, and the evaluation set has none",
            where="data.evaluation",
            fix="name its labels (data.evaluation.labels), or remove the task to measure fidelity",
        )
    settled = [budget.model_copy(update={"metric": budget.metric or usable[0]}) for budget in asked]
    names = [str(budget.metric) for budget in settled]
    for index, (budget, name) in enumerate(zip(settled, names, strict=True)):
        where = "budget" if len(settled) == 1 else f"budget[{index}]"
        if name not in usable:
            raise _unusable(name, task, usable, where)
        if name in names[:index]:
            raise RecipeError(f"{name} has a budget already", where=f"{where}.metric", fix="keep one of them")
        if task.metric(name).info.unit == "ratio" and budget.max_drop is not None and budget.max_drop > 1:
            fix = "0.01 is one percentage point"
            raise RecipeError(f"{budget.max_drop:g} is more than a ratio can fall", where=f"{where}.max_drop", fix=fix)
    return tuple(settled)


def _unusable(name: str, task: Task, usable: list[str], where: str) -> RecipeError:
    """The refusal of a budget on a metric that the task does not have, or that needs labels."""
    known, classifies = [spec.name for spec in task.metrics], task.class_axis is not None
    asked_for = name == "top1" and task.name == "fidelity"  # and no task is named in the recipe
    if name in known or (asked_for and classifies):
        problem = f"{name} needs labels, and the evaluation set has none"
        fix = "name its labels (data.evaluation.labels)"
    elif asked_for:
        problem = f"metric {name!r} needs class scores (N, classes) as the first output"
        fix = f"use one of {', '.join(usable)}, or name the model's task"
    else:
        problem = f"there is no metric {name!r} in the task {task.name}; {did_you_mean(name, known)}"
        fix = f"use one of {', '.join(usable)}"
    return RecipeError(problem, where=f"{where}.metric", fix=fix)
