"""Lookup: the task that a recipe names, that the user has made, or that a model and its labels suggest."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric

from pipeline.core import MetricInfo, Model, RecipeError, did_you_mean
from pipeline.core.callables import call, failure_of, import_callable
from pipeline.data.labels import ANY
from pipeline.data.samples import SampleSet, examples_of
from pipeline.tasks import builtin
from pipeline.tasks.builtin import classification, fidelity
from pipeline.tasks.prediction import outputs_of
from pipeline.tasks.task import Example, MetricSpec, Predictions, Task, Tensors, Terms, only_or_all


def names() -> list[str]:
    """The built-in tasks."""
    return sorted(module.name for module in pkgutil.iter_modules(builtin.__path__))


def built_in(name: str, example: Example) -> Task:
    """A built-in task, for a model of these outputs.

    Raises:
        RecipeError: There is no such task, or the outputs do not suit it.
    """
    if name not in names():
        raise RecipeError(
            f"there is no task {name!r}; {did_you_mean(name, names())}",
            where="task",
            fix="name one of: " + ", ".join(names()),
        )
    module = import_module(f"pipeline.tasks.builtin.{name}")
    made: Task = module.task(example)
    return made


def suggested_for(module: nn.Module, samples: SampleSet) -> Task:
    """The task that a module and a few of its samples suggest."""
    inputs = examples_of(samples)
    return suggested(Example(inputs=inputs, outputs=outputs_of(module, inputs)), labelled=samples.labelled)


def suggested(example: Example, *, labelled: bool) -> Task:
    """Classification where the first output is class scores and there are labels; else fidelity to the original."""
    chosen = classification.task if labelled and classification.classifies(example.outputs) else fidelity.task
    return chosen(example)


def own(
    base: Task,
    *,
    metrics: Sequence[str],
    postprocess: str | None,
    loss: str | None,
    example: Example,
    root: Path = Path(),
) -> Task:
    """A task with parts of the user's own, each named as ``module:callable``.

    Args:
        base: What the other parts are taken from.
        metrics: Factories of `torchmetrics.Metric`; each is known by its function's name.
        postprocess: Makes predictions of outputs and inputs: ``postprocess(outputs, inputs)``.
        loss: The distance of a student's outputs from its teacher's: ``loss(student, teacher)``, a scalar.
            Each function gets a tensor where there is one output or input, else a tuple of them.

    Raises:
        RecipeError: A part cannot be imported, or fails on a few real samples.
    """
    made = base
    if metrics:
        made = replace(base, metrics=tuple(_metric(name, root) for name in metrics))
        if base.name == "fidelity":
            made = replace(made, name="own", labels=ANY, label_loss=None, predict=only_or_all)
    if postprocess is not None:
        made = replace(made, predict=_postprocess(postprocess, root))
        _tried(postprocess, lambda: made.predict(example.outputs, example.inputs))
    if loss is not None:
        made = replace(made, terms=_terms(loss, root), label_loss=None)
        _tried(loss, lambda: made.terms(example.outputs, example.outputs, 1.0))
    return made


def _metric(name: str, root: Path) -> MetricSpec:
    factory = import_callable(name, root)

    def make() -> Metric:
        made = call(name, {}, root, field="task.metrics", refusal=RecipeError)
        if not isinstance(made, Metric):
            fix = "return an object of a class that is derived from torchmetrics.Metric"
            raise RecipeError(f"returns a {type(made).__name__}, not a torchmetrics.Metric", where=name, fix=fix)
        return made

    higher = make().higher_is_better
    if higher is None:
        fix = "set higher_is_better = True or False in the metric's class"
        raise RecipeError("does not say whether higher is better", where=name, fix=fix)
    short = str(getattr(factory, "__name__", name.rpartition(":")[2]))
    unit = str(getattr(make(), "unit", ""))
    return MetricSpec(info=MetricInfo(name=short, title=short, unit=unit, higher_is_better=higher), make=make)


def _postprocess(name: str, root: Path) -> Callable[[Tensors, Tensors], Predictions]:
    function = import_callable(name, root)

    def predict(outputs: Tensors, inputs: Tensors) -> Predictions:
        return function(_alone(outputs), _alone(inputs))

    return predict


def _terms(name: str, root: Path) -> Terms:
    function = import_callable(name, root)

    def terms(student: Tensors, teacher: Tensors, _temperature: float) -> list[Tensor]:
        return [function(_alone(student), _alone(teacher))]

    return terms


def _alone(tensors: Tensors) -> Tensor | Tensors:
    return tensors[0] if len(tensors) == 1 else tensors


def _tried(name: str, attempt: Callable[[], Any]) -> None:
    """Run a user's function on real samples before a run starts."""
    try:
        attempt()
    except (Exception, SystemExit) as error:  # the user's code may fail in any way
        problem = f"it fails on the original's outputs: {failure_of(error)}"
        raise RecipeError(problem, where=name, fix="correct that line") from error


def task_of(model: Model, samples: SampleSet, task: Task | None = None) -> Task:
    """The task that is given, else the one that a model and its samples suggest."""
    if task is not None:
        return task
    inputs = model.examples or examples_of(samples)
    return suggested(Example(inputs=inputs, outputs=outputs_of(model.reference, inputs)), labelled=samples.labelled)


def for_task(samples: SampleSet, task: Task) -> SampleSet:
    """The samples, with labels in the form that a task expects; without, where it expects none."""
    return replace(samples, form=task.labels)
