"""Loops: a model that keeps states is called once for each step of a sequence, with the states of the step before.

Sequences are tensors ``(N, steps, …)``, one per input that is no state. States start at zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from pipeline.core import CheckpointError, Model, TensorSpec, did_you_mean
from pipeline.core.outputs import output_tuple
from pipeline.tasks.prediction import Predict
from pipeline.tasks.task import Tensors

V = TypeVar("V")
"""A tensor or an array."""


@dataclass(frozen=True, slots=True)
class Loop:
    """Which inputs and outputs of a model are states.

    Attributes:
        inputs: All inputs.
        outputs: Names of all outputs.
        states: Per input that is a state, the output that is its next value.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    states: dict[str, str]

    @property
    def results(self) -> tuple[str, ...]:
        """The outputs that are no states; all of them where there is no other."""
        return tuple(name for name in self.outputs if name not in self.states.values()) or self.outputs

    def steps(self, predict: Predict, sequences: Tensors) -> Iterator[tuple[Tensors, Tensors]]:
        """The inputs and outputs ``(N, …)`` of each step."""
        given = {
            spec.name: torch.zeros(len(sequences[0]), *spec.shape, dtype=getattr(torch, spec.dtype))
            for spec in self.inputs
            if spec.name in self.states
        }
        names = [spec.name for spec in self.inputs if spec.name not in self.states]
        for step in range(sequences[0].shape[1]):
            given |= {name: values[:, step].contiguous() for name, values in zip(names, sequences, strict=True)}
            inputs = tuple(given[spec.name] for spec in self.inputs)
            found = predict(inputs)
            yield inputs, found
            by_name = dict(zip(self.outputs, found, strict=True))
            given |= {name: by_name[source].clone() for name, source in self.states.items()}

    def through(self, run: Callable[[tuple[V, ...]], tuple[V, ...]], steps: Sequence[tuple[V, ...]]) -> tuple[V, ...]:
        """The last outputs of one step after another with the states of the step before, as on a device; for timing.

        Args:
            run: A file or a module, on whatever holds its values.
            steps: All inputs of each step; the states of the first are where the sequence begins.
        """
        kept = [
            (position, self.outputs.index(self.states[spec.name]))
            for position, spec in enumerate(self.inputs)
            if spec.name in self.states
        ]
        outputs = run(steps[0])
        for inputs in steps[1:]:
            given = list(inputs)
            for position, source in kept:
                given[position] = outputs[source]
            outputs = run(tuple(given))
        return outputs

    def around(self, predict: Predict) -> Predict:
        """The results ``(N, steps, …)`` of sequences."""

        def run(sequences: Tensors) -> Tensors:
            found = [dict(zip(self.outputs, outputs, strict=True)) for _, outputs in self.steps(predict, sequences)]
            return tuple(torch.stack([each[name] for each in found], 1) for name in self.results)

        return run


class Looped(nn.Module):
    """A module that keeps states, as a module of sequences."""

    def __init__(self, module: nn.Module, loop: Loop) -> None:
        super().__init__()
        self.module, self._loop = module, loop

    def forward(self, *sequences: Tensor) -> tuple[Tensor, ...]:
        return self._loop.around(lambda inputs: output_tuple(self.module(*inputs)))(sequences)


def loop_of(model: Model) -> Loop | None:
    """The loop of a model that keeps states; None of any other."""
    return Loop(model.inputs, model.outputs, dict(model.states)) if model.states else None


def of_sequences(module: nn.Module, loop: Loop | None) -> nn.Module:
    """The module that an evaluation set is run through."""
    return module if loop is None else Looped(module, loop)


def without_states(inputs: tuple[TensorSpec, ...], states: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    """The inputs that samples hold.

    Raises:
        CheckpointError: A state is no input, or there is no other input.
    """
    for name in states:
        _require_known(name, [spec.name for spec in inputs], "input")
    left = tuple(spec for spec in inputs if spec.name not in states)
    if not left:
        raise CheckpointError("every input is a state", where="model.states", fix="leave out the input of each step")
    return left


def require_states(model: Model, first: Tensors) -> None:
    """Refuse states that the model does not give, or that change their form.

    Args:
        first: Outputs of the model for a sample.

    Raises:
        CheckpointError: Names the state.
    """
    inputs = {spec.name: spec for spec in model.inputs}
    outputs = dict(zip(model.outputs, first, strict=True))
    for name, source in model.states:
        _require_known(source, list(outputs), "output")
        found, spec = outputs[source], inputs[name]
        dtype = str(found.dtype).removeprefix("torch.")
        if tuple(found.shape[1:]) != spec.shape or dtype != spec.dtype:
            raise CheckpointError(
                f"output {source!r} is {dtype} {['N', *found.shape[1:]]}, and the state {name!r}, which it becomes, is "
                f"{spec.dtype} {['N', *spec.shape]}",
                where="model.states",
                fix="give both the same shape, with the batch as the first axis",
            )


def _require_known(name: str, known: list[str], what: str) -> None:
    if name not in known:
        problem = f"the model has no {what} {name!r}; {did_you_mean(name, known)}"
        fix = "write model.states: {input: output}; model.outputs names the outputs"
        raise CheckpointError(problem, where="model.states", fix=fix)
