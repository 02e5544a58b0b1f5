"""Prediction: one way to run a model on tensors, be it a torch module or a target's session."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.core import StageError
from pipeline.core.callables import failure_of
from pipeline.core.outputs import output_tuple
from pipeline.data.samples import SampleSet
from pipeline.target import Session, run_in_steps

Predict = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
"""Outputs ``(N, …)``, always a tuple, for a batch of inputs ``(N, …)``."""


def predictor(module: nn.Module) -> Predict:
    """A module's forward pass, without gradients: all samples at once, or one at a time if its code asks for that."""

    def predict(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            try:
                return output_tuple(module(*inputs))
            except Exception:  # the user's forward may raise anything; with one sample it runs, or this raises again
                if len(inputs[0]) < 2:
                    raise
                parts = [
                    output_tuple(module(*(value[index : index + 1] for value in inputs)))
                    for index in range(len(inputs[0]))
                ]
                return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))

    return predict


class SetPredictor:
    """A module's forward pass over a sample set, batch after batch, in the order of the samples.

    Raises:
        StageError: Forward fails on a sample, or gives outputs of another shape than before; names the sample and,
            where it is the user's code that fails, the file and the line.
    """

    def __init__(self, module: nn.Module, samples: SampleSet) -> None:
        self._predict, self._samples = predictor(module), samples
        self._done = 0
        self._shapes: list[tuple[int, ...]] | None = None

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        try:
            outputs = self._predict(inputs)
        except Exception as error:  # the user's forward may raise anything
            raise self._refusal(
                self._done + self._first_that_fails(inputs),
                f"forward fails: {failure_of(error)}",
                "correct that line, or remove the sample",
            ) from error
        shapes = [tuple(output.shape[1:]) for output in outputs]
        if self._shapes not in (None, shapes):
            problem = f"forward gives outputs {shapes} with its batch, and {self._shapes} before"
            raise self._refusal(self._done, problem, "give outputs of one shape for every sample")
        self._shapes = shapes
        self._done += len(inputs[0])
        return outputs

    def _first_that_fails(self, inputs: tuple[Tensor, ...]) -> int:
        for place in range(len(inputs[0])):
            try:
                self._predict(tuple(value[place : place + 1] for value in inputs))
            except Exception:  # as above
                return place
        return 0

    def _refusal(self, place: int, problem: str, fix: str) -> StageError:
        return StageError(
            f"sample {self._samples.indices[place]}: {problem}", where=self._samples.source.where, fix=fix
        )


def outputs_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A module's outputs for a few samples."""
    return predictor(module)(inputs)


def session_predictor(session: Session) -> Predict:
    """A session's forward pass on tensors, of any number of samples."""

    def predict(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        outputs = run_in_steps(session, tuple(tensor.numpy() for tensor in inputs))
        return tuple(torch.from_numpy(output) for output in outputs)

    return predict
