"""Open sizes of inputs: the samples say which size a run works with, and the network which ones can stay open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.core import DataError, Model, StageError, TensorSpec
from pipeline.core.outputs import output_tuple
from pipeline.data.open import open_samples
from pipeline.data.preprocessing import prepared_shape
from pipeline.data.source import DataSource
from pipeline.models.capture import capture, example_inputs
from pipeline.models.checkpoints.huggingface import tokenizer_of
from pipeline.models.load import Opened
from pipeline.progress import console
from pipeline.recipe import Recipe

_FACTORS = (2.0, 1.5, 0.5)
"""Of the samples' size, at which a network is tried."""
MAX_SIZE = 1 << 20


def sized(opened: Opened, recipe: Recipe, root: Path) -> Opened:
    """The module's inputs with the sizes of the first evaluation sample in place of open ones.

    Raises:
        DataError: The sample has other axes, or a size beyond the largest that the recipe allows.
    """
    if not any(spec.open_sizes for spec in opened.inputs):
        return opened
    source: DataSource = recipe.data.evaluation
    preprocessing = source.preprocessing or recipe.data.preprocessing
    tokenize = None if opened.described is None else tokenizer_of(opened.described)
    samples = open_samples(source, opened.inputs, preprocessing, name="evaluation", root=root, tokenize=tokenize)
    arrays, _ = samples.source.read(samples.indices[:1])
    specs = tuple(
        _sized(spec, prepared_shape(array, spec, preprocessing), samples.source.where) if spec.open_sizes else spec
        for spec, array in zip(opened.inputs, arrays, strict=True)
    )
    return replace(opened, inputs=specs)


def _sized(spec: TensorSpec, shape: tuple[int, ...], where: str) -> TensorSpec:
    if len(shape) != len(spec.shape):
        raise DataError(
            f"samples of {spec.name!r} have shape {list(shape)} after preprocessing; the model takes {spec.written}",
            where=where,
            fix="correct model.inputs: the shape of one sample, without the batch",
        )
    sizes = list(spec.shape)
    for each in spec.open_sizes:
        sizes[each.axis] = shape[each.axis]
        if each.most is not None and shape[each.axis] > each.most:
            raise DataError(
                f"samples of {spec.name!r} have {each.name} = {shape[each.axis]}; the model takes {each.most} at most",
                where=where,
                fix="shorten the samples, or correct model.inputs",
            )
    return spec.model_copy(update={"shape": tuple(sizes)})


def with_open_axes(model: Model) -> Model:
    """The model with the open sizes that its own code leaves open as dynamic axes, and a note on the others."""
    names = list(dict.fromkeys(each.name for spec in model.inputs for each in spec.open_sizes))
    if not names:
        return model
    kept = names if _is_open(model, names) else [name for name in names if len(names) > 1 and _is_open(model, [name])]
    notes = [
        f"input {spec.name!r}: {each.name} is fixed at {spec.shape[each.axis]}, by the model's own code"
        for spec in model.inputs
        for each in spec.open_sizes
        if each.name not in kept
    ]
    for note in notes:
        console.print(f"  {note}")
    return replace(model, dynamic=_axes(model, kept), notes=(*model.notes, *notes))


def _axes(model: Model, names: list[str]) -> dict[str, tuple[int, ...]]:
    """Per input, the axes of these open sizes; axis 0 is the batch."""
    axes = {spec.name: tuple(o.axis + 1 for o in spec.open_sizes if o.name in names) for spec in model.inputs}
    return {name: found for name, found in axes.items() if found}


def _is_open(model: Model, names: list[str]) -> bool:
    """Whether the network takes another value of these sizes, and its captured graph then computes the same."""
    try:
        program = capture(model.module, model.inputs, examples=model.examples, dynamic=_axes(model, names)).module()
    except StageError:
        return False
    for factor in _FACTORS:
        values = tuple(
            _resized(spec, value, names, factor) for spec, value in zip(model.inputs, _few(model), strict=True)
        )
        try:
            with torch.no_grad():
                expected, found = output_tuple(model.module(*values)), output_tuple(program(*values))
        except Exception:  # the network, or a guard of its graph, refuses this size
            continue
        if all(
            one.shape == other.shape and torch.allclose(one, other, 1e-3, 1e-3)
            for one, other in zip(expected, found, strict=True)
        ):
            return True
    return False


def _few(model: Model) -> tuple[Tensor, ...]:
    return example_inputs(model.examples or model.inputs, 2)


def _resized(spec: TensorSpec, value: Tensor, names: list[str], factor: float) -> Tensor:
    """A value ``(N, …)`` repeated or cut along the axes of these names."""
    for each in spec.open_sizes:
        if each.name in names:
            size = value.shape[each.axis + 1]
            other = min(max(1, round(size * factor)), each.most or MAX_SIZE)
            if other == size:
                other = max(1, size - 1)
            value = value.index_select(each.axis + 1, torch.arange(other) % size)
    return value
