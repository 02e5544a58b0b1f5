"""Sequences by connectionist temporal classification: one logit per symbol and frame, symbol 0 being the blank."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.text import CharErrorRate, WordErrorRate

from pipeline.core import MetricInfo
from pipeline.data.labels import sequences
from pipeline.tasks.losses import divergence_of_first
from pipeline.tasks.task import ClassScores, Example, MetricSpec, Task, Tensors, Update, misfit


def task(example: Example) -> Task:
    """Character error rate, and word error rate where the alphabet has a space, of the greedy decoding."""
    first = example.first
    if first.ndim != 3 or first.shape[2] < 2 or not first.is_floating_point():
        raise misfit("ctc needs logits (N, frames, symbols) as the first output", first)
    symbols, reading = first.shape[2], ClassScores.like(first, axis=2)
    alphabet = example.alphabet or "".join(chr(0x4E00 + number) for number in range(symbols - 1))  # any letters

    def text(numbers: Tensor) -> str:
        return "".join(alphabet[number - 1] for number in numbers.tolist())

    def update(metric: Metric, texts: list[str], labels: list[Tensor]) -> None:
        metric.update(texts, [text(label) for label in labels])

    metrics = [_rate("cer", "Character error rate", CharErrorRate, update)]
    if " " in alphabet:
        metrics.append(_rate("wer", "Word error rate", WordErrorRate, update))
    return Task(
        name="ctc",
        labels=sequences(symbols, example.alphabet),
        metrics=tuple(metrics),
        predict=lambda outputs, _: [text(greedy(frames)) for frames in outputs[0]],
        terms=divergence_of_first(reading),
        label_loss=partial(_ctc_loss, reading),
        class_axis=2,
    )


def _rate(name: str, title: str, metric: type[Metric], update: Update) -> MetricSpec:
    return MetricSpec(
        info=MetricInfo(name=name, title=title, higher_is_better=False),
        make=partial(metric, sync_on_compute=False),
        update=update,
    )


def greedy(frames: Tensor) -> Tensor:
    """The likeliest symbol of each frame ``(T, symbols)``, without repetitions and blanks.

    >>> greedy(torch.eye(3)[[1, 1, 0, 1, 2, 2]])
    tensor([1, 1, 2])
    """
    found: Tensor = torch.unique_consecutive(frames.argmax(1))
    return found[found != 0]


def _ctc_loss(scores: ClassScores, outputs: Tensors, labels: list[Tensor]) -> Tensor:
    log_probabilities = functional.log_softmax(scores.logits(outputs[0]), dim=2).transpose(0, 1)
    frames = torch.full((len(labels),), len(log_probabilities))
    lengths = torch.tensor([len(label) for label in labels])
    return functional.ctc_loss(log_probabilities, torch.cat(labels), frames, lengths, zero_infinity=True)
