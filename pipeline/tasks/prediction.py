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
    """A module's forward pass, without gradients."""

    def predict(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return output_tuple(module(*inputs))

    return predict


def outputs_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A module's outputs for a few samples: all at once or, where its own code fixes the batch, one at a time."""
    predict = predictor(module)
    try:
        return predict(inputs)
    except Exception:  # the user's forward may raise anything; with one sample it runs, or it was refused earlier
        parts = [predict(tuple(value[index : index + 1] for value in inputs)) for index in range(len(inputs[0]))]
        return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))


def session_predictor(session: Session) -> Predict:
    """A session's forward pass on tensors, of any number of samples."""

    def predict(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        outputs = run_in_steps(session, tuple(tensor.numpy() for tensor in inputs))
        return tuple(torch.from_numpy(output) for output in outputs)

    return predict
