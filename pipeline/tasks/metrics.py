"""Metrics on a set of samples, whatever runs the model: a torch module or a target's session."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from pipeline.core.outputs import output_tuple
from pipeline.data.samples import SampleSet
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


def _accuracy(classes: int) -> MulticlassAccuracy:
    """Top-1 of the samples that this process has seen: where several share a run, each sees all of them."""
    return MulticlassAccuracy(num_classes=classes, average="micro", sync_on_compute=False)


def classifies(outputs: tuple[Tensor, ...]) -> bool:
    """Whether the first output is logits: ``(N, classes)`` with at least two classes."""
    return outputs[0].ndim == 2 and outputs[0].shape[1] > 1


def sqnr_db(reference: Tensor, tested: Tensor) -> float:
    """Signal to quantization-noise ratio ``10 log10(sum(r^2) / sum((r - t)^2))`` in dB; infinite where they are equal.

    >>> round(sqnr_db(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.5])), 3)
    20.0
    """
    comparison = Comparison()
    comparison.update((tested,), (reference,))
    return comparison.sqnr_db


class Comparison:
    """Outputs against a reference's outputs and against labels, batch by batch, in constant memory.

    >>> comparison = Comparison()
    >>> logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    >>> comparison.update((logits,), (logits,), labels=torch.tensor([1, 0, 0, 0]))
    >>> comparison.top1, comparison.agreement, comparison.sqnr_db
    (0.75, 1.0, inf)
    """

    def __init__(self) -> None:
        self._samples = 0
        self._correct: MulticlassAccuracy | None = None
        self._same: MulticlassAccuracy | None = None
        self._signal = self._noise = 0.0
        self.max_abs_error = 0.0

    def update(self, tested: tuple[Tensor, ...], reference: tuple[Tensor, ...], labels: Tensor | None = None) -> None:
        """Add a batch: outputs ``(N, …)`` of both, and labels ``(N,) int64`` where there are any."""
        self._samples += len(tested[0])
        for ours, theirs in zip(tested, reference, strict=True):
            error = ours.double() - theirs.double()
            self._signal += float(theirs.double().square().sum())
            self._noise += float(error.square().sum())
            self.max_abs_error = max(self.max_abs_error, float(error.abs().max()))
        if not classifies(tested):
            return
        if self._same is None:
            self._same = _accuracy(classes=tested[0].shape[1])
        self._same.update(tested[0], reference[0].argmax(1))
        if labels is not None:
            if self._correct is None:
                self._correct = _accuracy(classes=tested[0].shape[1])
            self._correct.update(tested[0], labels)

    @property
    def sqnr_db(self) -> float:
        """``10 log10(signal / noise)`` over all outputs in dB; infinite where they are equal."""
        if self._noise == 0:
            return float("inf")
        return float(10 * torch.log10(torch.tensor(self._signal / self._noise, dtype=torch.float64)))

    @property
    def top1(self) -> float | None:
        """Share of samples whose largest logit is the label's."""
        return self._share(self._correct)

    @property
    def agreement(self) -> float | None:
        """Share of samples with the same largest logit as the reference."""
        return self._share(self._same)

    def metrics(self) -> dict[str, float]:
        """What there is of top-1 and agreement."""
        found = {"top1": self.top1, "agreement": self.agreement}
        return {name: value for name, value in found.items() if value is not None}

    def _share(self, accuracy: MulticlassAccuracy | None) -> float | None:
        if accuracy is None:
            return None
        return round(float(accuracy.compute()) * self._samples) / self._samples  # float32 to the exact ratio


def evaluate(
    module: nn.Module, samples: SampleSet, *, reference: nn.Module | None = None, batch_size: int = 256
) -> dict[str, float]:
    """Top-1 on labelled samples and, where a reference is given, agreement with it."""
    comparison = Comparison()
    predict = predictor(module)
    expect = predict if reference is None else predictor(reference)
    for batch in samples.batches(batch_size):
        outputs = predict(batch.inputs)
        comparison.update(outputs, outputs if reference is None else expect(batch.inputs), batch.labels)
    metrics = comparison.metrics()
    if reference is None:
        metrics.pop("agreement", None)
    return metrics
