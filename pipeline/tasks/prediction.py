"""Prediction: one way to run a model on tensors, be it a torch module or a target's session."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.core.outputs import output_tuple
from pipeline.target import Session

Predict = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
"""Outputs ``(N, …)``, always a tuple, for a batch of inputs ``(N, …)``."""


def predictor(module: nn.Module) -> Predict:
    """A module's forward pass, without gradients."""

    def predict(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return output_tuple(module(*inputs))

    return predict


def session_predictor(session: Session) -> Predict:
    """A session's forward pass on tensors, in steps of its batch size where that is fixed (the last step is padded)."""

    def predict(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        count = len(inputs[0])
        step = session.batch_size or count
        parts = []
        for start in range(0, count, step):
            arrays = tuple(tensor[start : start + step].numpy() for tensor in inputs)
            missing = step - len(arrays[0])
            if missing:
                arrays = tuple(np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for array in arrays)
            parts.append([output[: step - missing] for output in session.run(arrays)])
        return tuple(torch.from_numpy(np.concatenate(outputs)) for outputs in zip(*parts, strict=True))

    return predict
