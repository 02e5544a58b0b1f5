"""A task with parts of the user's own, each of which is tried on real samples before a run starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from pipeline.core import MetricInfo, RecipeError
from pipeline.core.callables import call, failure_of, import_callable
from pipeline.data.labels import ANY, Labels
from pipeline.tasks.task import Example, MetricSpec, Predictions, Task, Tensors, Terms, only_or_all

_LINE = "correct that line"


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
        RecipeError: A part cannot be imported, or fails on a few real samples, or returns something else.
    """
    made = base
    if metrics:
        made = replace(base, metrics=tuple(_metric(name, root) for name in metrics))
        if base.name == "fidelity":
            made = replace(made, name="own", labels=ANY, label_loss=None, predict=only_or_all)
    if postprocess is not None:
        made = replace(made, predict=_postprocess(postprocess, root))
        found = _tried(postprocess, lambda: made.predict(example.outputs, example.inputs))
        _require_samples(found, len(example.first), postprocess)
    if loss is not None:
        made = replace(made, terms=_terms(loss, root), label_loss=None)
        _require_loss(loss, made.terms, example.outputs)
    return made


def try_metrics(task: Task, example: Example, labels: Labels | None) -> list[str]:
    """Compute each usable metric of a few real samples; returns the names of those that are NaN or infinite there.

    Raises:
        RecipeError: A metric fails, or is not one number.
    """
    odd = []
    found = task.predict(example.outputs, example.inputs)
    for spec in task.usable(labelled=labels is not None):

        def compute(spec: MetricSpec = spec) -> Any:
            metric = spec.make()
            spec.update(metric, found, labels if spec.needs_labels else found)
            return metric.compute()

        where = f"task.metrics: {spec.name}"
        result = _tried(where, compute)
        try:
            value = spec.pick(result)
        except (TypeError, ValueError, RuntimeError):
            what = _described(result)
            raise RecipeError(f"computes {what}, not one number", where=where, fix="return a scalar") from None
        if not math.isfinite(value):
            odd.append(spec.name)
    return odd


def _metric(name: str, root: Path) -> MetricSpec:
    factory = import_callable(name, root)

    def make() -> Metric:
        made = call(name, {}, root, field="task.metrics", refusal=RecipeError)
        if not isinstance(made, Metric):
            fix = "return an object of a class that is derived from torchmetrics.Metric"
            raise RecipeError(f"returns a {type(made).__name__}, not a torchmetrics.Metric", where=name, fix=fix)
        return made

    metric = make()
    if metric.higher_is_better is None:
        fix = "set higher_is_better = True or False in the metric's class"
        raise RecipeError("does not say whether higher is better", where=name, fix=fix)
    short = str(getattr(factory, "__name__", name.rpartition(":")[2]))
    unit = str(getattr(metric, "unit", ""))
    info = MetricInfo(name=short, title=short, unit=unit, higher_is_better=metric.higher_is_better)
    return MetricSpec(info=info, make=make)


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


def _require_samples(found: Predictions, count: int, where: str) -> None:
    """Predictions are cut into samples, so each part has one entry per sample."""
    parts = found.values() if isinstance(found, Mapping) else found if isinstance(found, tuple) else [found]
    for part in parts:
        if not isinstance(part, Tensor | list):
            problem = f"returns {'nothing' if part is None else _described(part)}"
        elif len(part) != count:
            problem = f"returns {len(part)} predictions for {count} samples"
        else:
            continue
        fix = "return a tensor (N, …), a list with an entry per sample, or a tuple or dict of them"
        raise RecipeError(problem, where=where, fix=fix)


def _require_loss(where: str, terms: Terms, outputs: Tensors) -> None:
    """The loss is a finite scalar with a gradient, of a student that is a little off."""
    student = tuple(
        (output * 1.01).clone().requires_grad_() if output.is_floating_point() else output for output in outputs
    )
    teacher = tuple(output.clone() for output in outputs)
    (value,) = _tried(where, lambda: terms(student, teacher, 1.0))
    fix = "return a scalar that depends on the student's outputs"
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise RecipeError(f"returns {_described(value)}, not a scalar tensor", where=where, fix=fix)
    if not value.requires_grad:
        raise RecipeError("returns a number without a gradient", where=where, fix=fix)
    if not torch.isfinite(value).all():
        raise RecipeError(f"is {value.item()} for a student that is 1 % off", where=where, fix=_LINE)


def _described(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _tried(name: str, attempt: Callable[[], Any]) -> Any:
    """What a user's function returns for real samples."""
    try:
        return attempt()
    except (Exception, SystemExit) as error:  # the user's code may fail in any way
        problem = f"it fails on the original's outputs: {failure_of(error)}"
        raise RecipeError(problem, where=name, fix=f"{_LINE}, or what it is given") from error
