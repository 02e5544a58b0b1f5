"""The interface of a model: named tensors ``(N, …)`` go in, and named tensors ``(N, …)`` come out.

A module whose forward takes or returns something else gets that form here, where it is possible, so that no stage and
no target ever meets another one. What has no such form is refused, with the reason and the fix.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from pipeline.core import CheckpointError, Model, TensorSpec
from pipeline.core.callables import failure_of
from pipeline.core.outputs import output_tuple
from pipeline.models.arguments import keywords
from pipeline.models.capture import capture, example_inputs
from pipeline.models.modules import plain
from pipeline.models.outputs import NAME, RESERVED, Form, Path, form_of, leaves, named, require_distinct
from pipeline.models.precision import require_float32

TOLERANCE = 1e-3
"""Relative difference up to which a sample's output is the same alone as in a batch."""


logger = logging.getLogger(__name__)


def checked_model(
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[str, ...],
    classes: tuple[str, ...],
    *,
    where: str,
    examples: tuple[Tensor, ...] = (),
    notes: tuple[str, ...] = (),
) -> Model:
    """The `Model` of a module, after a few runs, so that a module that cannot run is refused here.

    Args:
        outputs: Names of the outputs; keys of what forward returns, or ``output``, ``output_1``, … when empty.
        classes: Names of the classes, or empty.
        where: What the module came from, for the messages.
        examples: Real samples, which the module is run on; made-up values where there are none.
        notes: What was changed when the module was loaded.

    Raises:
        CheckpointError: The module fails on these inputs, returns something that has no form as tensors ``(N, …)``, or
            has another number of outputs or classes.
    """
    require_names([spec.name for spec in inputs], "input", where=where)
    module, changes = plain(module, where=where)
    inputs = tuple(spec.model_copy(update={"dtype": "float32"}) if spec.dtype == "float16" else spec for spec in inputs)
    module, names, changed = in_normal_form(module, inputs, outputs, where=where, examples=examples)
    notes = (*notes, *changes, *changed)
    for note in notes:
        logger.info("%s: %s", where, note)
    logits = _run_on_all(module, examples or example_inputs(inputs), inputs, where, made_up=not examples)[0]
    if classes and logits.ndim <= 2 and logits.shape[-1] != len(classes):  # of other outputs, the task knows
        raise CheckpointError(
            f"the model has {logits.shape[-1]} logits, but {len(classes)} classes are named",
            where=where,
            fix="correct model.classes, or the factory's kwargs",
        )
    return Model(
        module=module,
        reference=module,
        inputs=inputs,
        outputs=names,
        classes=classes,
        examples=examples,
        notes=notes,
    )


def in_normal_form(
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[str, ...] = (),
    *,
    where: str,
    examples: tuple[Tensor, ...] = (),
) -> tuple[nn.Module, tuple[str, ...], tuple[str, ...]]:
    """The module with tensors ``(N, …)`` as inputs, by position, and outputs; their names; and notes on what changed.

    Raises:
        CheckpointError: See `checked_model`.
    """
    given = keywords(module, inputs, where=where)
    trials = _trials(module, inputs, given, examples, where)
    found = [list(leaves(result)) for _, result in trials]
    paths = [path for path, _ in found[0]]
    if any([path for path, _ in each] != paths for each in found):
        raise CheckpointError(
            "forward returns other outputs for another number of samples", where=where, fix="return the same ones"
        )
    names = _output_names(paths, outputs, inputs, where)
    columns = zip(*([value for _, value in each] for each in found), strict=True)
    forms = tuple(form_of(name, values, where=where) for name, values in zip(names, columns, strict=True))
    taken = {spec.name: value for spec, value in zip(inputs, trials[-1][0], strict=True)}
    require_distinct(names, tuple(value for _, value in found[-1]), taken, where=where)
    if any(given) or any(form != Form() for form in forms) or not _is_plain(trials[0][1]):
        module = _normalised(module, inputs, given, forms, examples, where)
        _require_order(module, names, forms, trials[-1][0], where)
    notes = (f"output {name!r}: {form.note}" for name, form in zip(names, forms, strict=True) if form.note)
    return module, names, tuple(notes)


def require_names(names: Sequence[str], what: str, *, where: str, taken: Sequence[str] = ()) -> None:
    """Refuse names that a target's file cannot hold, or that stand for two things.

    Args:
        what: ``input`` or ``output``.
        taken: Names that are in use already.

    Raises:
        CheckpointError: Names the first such name.
    """
    for index, name in enumerate(names):
        problem = None
        if not re.fullmatch(NAME, name) or name in RESERVED:
            problem = "is no name that every target's file can hold"
        elif name in names[:index]:
            problem = "is there twice"
        elif name in taken:
            problem = "is the name of an input, too"
        if problem is not None:
            raise CheckpointError(
                f"the {what} name {name!r} {problem}",
                where=where,
                fix=f"correct model.{what}s: letters, digits and underscores after a letter, each name once, and "
                "none of a type, such as int8 or tensor",
            )


def _output_names(
    paths: list[Path], outputs: tuple[str, ...], inputs: tuple[TensorSpec, ...], where: str
) -> tuple[str, ...]:
    taken = {spec.name for spec in inputs}
    if not paths:
        raise CheckpointError(
            "forward returns no tensor", where=where, fix="return the outputs that the file should have"
        )
    if outputs and len(outputs) != len(paths):
        raise CheckpointError(
            f"{len(outputs)} names are given for {len(paths)} outputs", where=where, fix="correct model.outputs"
        )
    require_names(outputs, "output", where=where, taken=tuple(taken))
    return outputs or named(paths, taken)


def _trials(
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    given: tuple[str | None, ...],
    examples: tuple[Tensor, ...],
    where: str,
) -> list[tuple[tuple[Tensor, ...], Any]]:
    """What forward took and returned for one, two and three samples; for one, where its code takes no more."""
    one = example_inputs(examples or inputs)
    kept = tuple(value.clone() for value in one)
    first = _run(module, one, given, inputs, where, made_up=not examples)
    for spec, before, after in zip(inputs, kept, one, strict=True):
        if not torch.equal(before, after):
            raise CheckpointError(
                f"forward changes its input {spec.name!r} in place", where=where, fix="write x = x * 2 for x *= 2"
            )
    require_float32(module, lambda: _called(module, one, given), where=where)
    trials = [(one, first)]
    for count in (2, 3):
        some = example_inputs(examples or inputs, count)
        try:
            trials.append((some, _called(module, some, given)))
        except (Exception, SystemExit) as error:  # the user's forward may raise anything
            if len(trials) > 1:
                raise CheckpointError(
                    f"the model runs on {count - 1} samples, and fails on {count} samples: {failure_of(error)}",
                    where=where,
                    fix="correct that line of forward: it has to take any number of samples, or one at a time",
                ) from error
            logger.debug("%s takes one sample at a time: %s", where, failure_of(error))
            break
    return trials


def _run(
    module: nn.Module,
    values: tuple[Tensor, ...],
    given: tuple[str | None, ...],
    inputs: tuple[TensorSpec, ...],
    where: str,
    *,
    made_up: bool,
) -> Any:
    try:
        return _called(module, values, given)
    except (Exception, SystemExit) as error:  # a user's forward may raise anything
        shapes = ", ".join(f"{spec.name} {[1, *spec.shape]} {spec.dtype}" for spec in inputs)
        also = "; or give samples=…, since forward may not take the values that are made up here" if made_up else ""
        raise CheckpointError(
            f"the model fails on {shapes}: {failure_of(error)}",
            where=where,
            fix=f"correct that line of forward, or model.inputs in the recipe{also}",
        ) from error


def _run_on_all(
    module: nn.Module, values: tuple[Tensor, ...], inputs: tuple[TensorSpec, ...], where: str, *, made_up: bool
) -> tuple[Tensor, ...]:
    """The outputs for these values, or for the last of them where the module takes one sample at a time."""
    by_position = (None,) * len(inputs)
    try:
        return output_tuple(_called(module, values, by_position))
    except Exception:  # the user's forward may raise anything
        for index in range(len(values[0])):
            one = tuple(value[index : index + 1] for value in values)
            outputs = output_tuple(_run(module, one, by_position, inputs, where, made_up=made_up))
        return outputs


def _called(module: nn.Module, values: tuple[Tensor, ...], given: tuple[str | None, ...]) -> Any:
    args, kwargs = _arguments(values, given)
    with torch.no_grad():
        return module(*args, **kwargs)


def _arguments(values: tuple[Tensor, ...], given: tuple[str | None, ...]) -> tuple[list[Tensor], dict[str, Tensor]]:
    pairs = list(zip(given, values, strict=True))
    return [value for name, value in pairs if name is None], {name: value for name, value in pairs if name is not None}


def _is_plain(result: Any) -> bool:
    """Whether forward itself returns a tensor, or a tuple or list of tensors."""
    return isinstance(result, Tensor) or (
        type(result) in (tuple, list) and all(isinstance(value, Tensor) for value in result)
    )


def _normalised(
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    given: tuple[str | None, ...],
    forms: tuple[Form, ...],
    examples: tuple[Tensor, ...],
    where: str,
) -> nn.Module:
    """The module as an instance of a subclass of its own class, so that the names of its layers stay what they are."""
    original = type(module)
    if not isinstance(module, GraphModule) and ("forward" in vars(module) or module._forward_hooks):
        raise CheckpointError(
            "forward is replaced or hooked on the instance, and takes or returns more than tensors (N, …)",
            where=where,
            fix="write a module whose forward takes and returns tensors",
        )

    def forward(self: nn.Module, *values: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = _arguments(values, given)
        result = original.forward(self, *args, **kwargs)
        batch = values[0].shape[0]
        return tuple(form(value, batch) for form, (_, value) in zip(forms, leaves(result), strict=True))

    if isinstance(module, GraphModule):  # which makes classes of its own when it is copied
        return capture(_Around(module, forward), inputs, examples=examples).module()
    module.__class__ = type(original.__name__, (original,), {"forward": forward, "__module__": original.__module__})
    return module


class _Around(nn.Module):
    """A program with another forward."""

    def __init__(self, program: GraphModule, forward: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.program, self._forward = program, forward

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        return self._forward(self.program, *values)


def _require_order(
    module: nn.Module, names: tuple[str, ...], forms: tuple[Form, ...], inputs: tuple[Tensor, ...], where: str
) -> None:
    """Refuse an output whose axes were taken apart, and in which a sample is not what it is alone."""
    together = _called(module, inputs, (None,) * len(inputs))
    for index in range(len(inputs[0])):
        alone = _called(module, tuple(value[index : index + 1] for value in inputs), (None,) * len(inputs))
        for name, form, one, all_of_them in zip(names, forms, alone, together, strict=True):
            if form.note and not _alike(one[0].double(), all_of_them[index].double()):
                raise CheckpointError(
                    f"output {name!r} mixes the samples of a batch, or has them in another order",
                    where=where,
                    fix="return tensors whose first axis is the batch",
                )


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal up to rounding, measured by the largest finite number of the first."""
    finite = one[one.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(one, other, TOLERANCE, TOLERANCE * largest, equal_nan=True)
