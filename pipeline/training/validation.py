"""Validation: how good a student is after each epoch, by the first metric of a task that the samples allow."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from pipeline.data.samples import SampleSet
from pipeline.tasks.evaluation import evaluate
from pipeline.tasks.task import Task


def validation(task: Task, teacher: nn.Module, held_out: SampleSet) -> Callable[[nn.Module], float | None]:
    """The first metric on held-out samples: against their labels where they have some, else against the teacher."""

    def validate(student: nn.Module) -> float | None:
        found = evaluate(student, held_out, task, reference=teacher)
        value = next(iter(found.values()), None)
        return value if value is not None and math.isfinite(value) else None

    return validate


def higher_is_better(task: Task, held_out: SampleSet | None) -> bool:
    """The direction of the metric that `validation` returns."""
    usable = task.usable(labelled=held_out is not None and held_out.labelled)
    return usable[0].info.higher_is_better if usable else True
