"""Prediction: one way to run a model on tensors, be it a torch module or a target's session."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.core.outputs import output_tuple
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


def outputs_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A module's outputs for a few samples."""
    return predictor(module)(inputs)


def session_predictor(session: Session) -> Predict:
    """A session's forward pass on tensors, of any number of samples."""

    def predict(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        outputs = run_in_steps(session, tuple(tensor.numpy() for tensor in inputs))
        return tuple(torch.from_numpy(output) for output in outputs)

    return predict
