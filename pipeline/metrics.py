"""Metrics on an evaluation set, whatever runs the model: a torch module or a target's session."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from pipeline.data import SampleSet

Predict = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
"""Outputs ``(N, …)`` for a batch of inputs ``(N, …)``."""


def predictor(module: nn.Module) -> Predict:
    """A module's forward pass without gradients, its output always a tuple."""

    def predict(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            outputs = module(*inputs)
        return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)

    return predict


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of samples whose largest logit is the label's.

    Args:
        logits: ``(N, classes) float32``.
        labels: ``(N,) int64``.

    >>> top1(torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]), torch.tensor([1, 0, 0, 0]))
    0.75
    """
    accuracy = MulticlassAccuracy(num_classes=logits.shape[1], average="micro")
    return round(float(accuracy(logits, labels)) * len(labels)) / len(labels)


def evaluate(module: nn.Module, samples: SampleSet, *, batch_size: int = 256) -> dict[str, float]:
    """Top-1 accuracy of a module on labelled samples; empty where there are no labels."""
    predict = predictor(module)
    logits, labels = [], []
    for batch in samples.batches(batch_size):
        if batch.labels is None:
            return {}
        logits.append(predict(batch.inputs)[0])
        labels.append(batch.labels)
    return {"top1": top1(torch.cat(logits), torch.cat(labels))}


def sqnr_db(reference: Tensor, tested: Tensor) -> float:
    """Signal to quantization-noise ratio ``10 log10(sum(r^2) / sum((r - t)^2))`` in dB; infinite where they are equal.

    >>> round(sqnr_db(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.5])), 3)
    20.0
    """
    reference, tested = reference.double(), tested.double()
    noise = (reference - tested).square().sum()
    return float("inf") if noise == 0 else float(10 * torch.log10(reference.square().sum() / noise))
