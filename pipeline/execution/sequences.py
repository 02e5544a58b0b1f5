"""Models that keep states: stages see single steps with the original's states; accuracy is that of whole sequences."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from pipeline.core import Model
from pipeline.data.samples import SampleSet
from pipeline.data.steps import of_steps
from pipeline.tasks.loop import Loop, Looped, loop_of, require_states
from pipeline.tasks.prediction import outputs_of, predictor
from pipeline.tasks.task import Tensors

MOST_STEPS = 8192
"""That stages see of a set, evenly spaced."""
SEQUENCES = 64
"""That run at once."""


def first_steps(loop: Loop, sequences: Tensors) -> Tensors:
    """The inputs of the first step of each sequence."""
    return next(loop.steps(lambda _: (), sequences))[0]


def with_steps(model: Model, sequences: Tensors) -> Model:
    """The model with a few steps of sequences, in which its states are no longer zeros, as its examples.

    Args:
        model: Its examples are first steps.

    Raises:
        CheckpointError: It does not have these states.
    """
    require_states(model, outputs_of(model.module, model.examples))
    loop = loop_of(model)
    assert loop is not None
    return replace(model, examples=_steps_of(loop, model.module, sequences, len(model.examples[0])))


def of_whole_sequences(model: Model, sequences: Tensors) -> Model:
    """The model as one of sequences, by which its task is settled."""
    loop = loop_of(model)
    if loop is None:
        return model
    module = Looped(model.module, loop)
    return replace(model, module=module, reference=module, outputs=loop.results, examples=sequences)


def steps_of(model: Model, samples: SampleSet | None) -> SampleSet | None:
    """What stages see of a set: steps of its sequences, where the model keeps states."""
    loop = loop_of(model)
    if loop is None or samples is None:
        return samples
    count = max(1, MOST_STEPS * SEQUENCES // max(SEQUENCES, len(samples)))
    parts = [_steps_of(loop, model.module, batch.inputs, count) for batch in samples.batches(SEQUENCES)]
    return of_steps(samples, [torch.cat(values) for values in zip(*parts, strict=True)], model.inputs)


def _steps_of(loop: Loop, module: nn.Module, sequences: Tensors, count: int) -> Tensors:
    """The inputs of at most so many steps, evenly spaced over all steps of all sequences."""
    inputs = [given for given, _ in loop.steps(predictor(module), sequences)]
    every = [torch.stack(values, 1).flatten(0, 1) for values in zip(*inputs, strict=True)]
    chosen = torch.linspace(0, len(every[0]) - 1, min(count, len(every[0]))).round().long()
    return tuple(values[chosen] for values in every)
