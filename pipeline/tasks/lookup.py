"""Lookup: the task that a recipe names, or that a model and its labels suggest."""

from __future__ import annotations

import pkgutil
from dataclasses import replace
from importlib import import_module

from torch import nn

from pipeline.core import Model, RecipeError, did_you_mean
from pipeline.data.samples import SampleSet, examples_of
from pipeline.tasks import builtin
from pipeline.tasks.builtin import classification, fidelity
from pipeline.tasks.prediction import outputs_of
from pipeline.tasks.task import Example, Task


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
    return suggested(_example(module, samples), labelled=samples.labelled)


def _example(module: nn.Module, samples: SampleSet) -> Example:
    inputs = examples_of(samples)
    return Example(inputs=inputs, outputs=outputs_of(module, inputs))


def suggested(example: Example, *, labelled: bool) -> Task:
    """Classification where the first output is class scores and there are labels; else fidelity to the original."""
    chosen = classification.task if labelled and classification.classifies(example.outputs) else fidelity.task
    return chosen(example)


def task_of(model: Model, samples: SampleSet, task: Task | None = None) -> Task:
    """The task that is given, else the one that a model and its samples suggest."""
    if task is not None:
        return task
    inputs = model.examples or examples_of(samples)
    return suggested(Example(inputs=inputs, outputs=outputs_of(model.reference, inputs)), labelled=samples.labelled)


def measurable(task: Task, module: nn.Module, samples: SampleSet) -> Task:
    """The task or, where all its metrics need labels and the samples have none, fidelity to ``module``."""
    return task if task.usable(labelled=samples.labelled) else fidelity.task(_example(module, samples))


def for_task(samples: SampleSet, task: Task) -> SampleSet:
    """The samples, with labels in the form that a task expects; without, where it expects none."""
    return replace(samples, form=task.labels)
