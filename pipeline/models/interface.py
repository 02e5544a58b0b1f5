"""Interface checks: a model runs on its inputs, returns tensors, and fits the names that it was given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.core import CheckpointError, Model, TensorSpec, first_line
from pipeline.core.outputs import output_tuple
from pipeline.models.capture import example_inputs


def checked_model(
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[str, ...],
    classes: tuple[str, ...],
    *,
    where: str,
) -> Model:
    """The `Model` of a module, after one run, so that a module that cannot run is refused here.

    Args:
        outputs: Names of the outputs; ``output``, ``output_1``, … when empty.
        classes: Names of the classes, or empty.
        where: What the module came from, for the messages.

    Raises:
        CheckpointError: The module fails on these inputs, returns something else than tensors, or has another number
            of outputs or classes.
    """
    try:
        with torch.no_grad():
            values = output_tuple(module(*example_inputs(inputs)))
    except Exception as error:  # a user's forward may raise anything
        shapes = ", ".join(f"{spec.name} {[1, *spec.shape]} {spec.dtype}" for spec in inputs)
        raise CheckpointError(
            f"the model fails on {shapes}: {first_line(error)}", where=where, fix="correct model.inputs in the recipe"
        ) from error
    if not all(isinstance(value, Tensor) for value in values):
        kinds = ", ".join(type(value).__name__ for value in values)
        raise CheckpointError(
            f"the model returns {kinds}; it must return a tensor or a tuple of tensors",
            where=where,
            fix="wrap it; a transformers model returns a tuple with return_dict=False",
        )
    outputs = outputs or tuple("output" if not index else f"output_{index}" for index in range(len(values)))
    if len(outputs) != len(values):
        raise CheckpointError(
            f"{len(outputs)} names are given for {len(values)} outputs", where=where, fix="correct model.outputs"
        )
    if classes and values[0].shape[-1] != len(classes):
        raise CheckpointError(
            f"the model has {values[0].shape[-1]} logits, but {len(classes)} classes are named",
            where=where,
            fix="correct model.classes, or the factory's kwargs",
        )
    return Model(module=module, reference=module, inputs=inputs, outputs=outputs, classes=classes)
