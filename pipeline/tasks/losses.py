"""Terms of distillation losses: how far a student's output is from its teacher's. Each returns a scalar."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.tasks.task import BinaryScores, ClassScores, Tensors, Terms

TINY = 1e-12


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error relative to the teacher's mean square, so that outputs of different units weigh the same.

    >>> relative_error(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0]))
    tensor(0.2000)
    """
    return (student - teacher).square().mean() / teacher.square().mean().clamp_min(TINY)


def cross_entropy_where_known(logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
    """Mean cross-entropy of logits ``(N, classes, …)`` over the labels that count; zero, not NaN, where none does.

    >>> cross_entropy_where_known(torch.zeros(1, 2, 3), torch.tensor([[255, 0, 1]]), 255)
    tensor(0.6931)
    """
    total = functional.cross_entropy(logits, labels, ignore_index=ignored, reduction="sum")
    return total / (labels != ignored).sum().clamp_min(1)


def relative_errors(student: Tensors, teacher: Tensors, _temperature: float) -> list[Tensor]:
    """`relative_error` of every output of real numbers."""
    pairs = zip(student, teacher, strict=True)
    return [relative_error(s, t) for s, t in pairs if s.is_floating_point()]


def divergence(student: Tensor, teacher: Tensor, temperature: float, axis: int = 1) -> Tensor:
    """``T^2 * KL(softmax(t / T) || softmax(s / T))`` along ``axis``, averaged over all other places.

    Hinton et al. 2015, https://arxiv.org/abs/1503.02531; ``T^2`` keeps the gradient's size independent of ``T``.
    """
    ours, theirs = (functional.log_softmax(logits / temperature, dim=axis) for logits in (student, teacher))
    places = ours.numel() // ours.shape[axis]
    total = functional.kl_div(ours, theirs, reduction="sum", log_target=True)
    return total / places * temperature**2


def divergence_of_first(scores: ClassScores) -> Terms:
    """`divergence` of the first output, and `relative_error` of the others."""

    def terms(student: Tensors, teacher: Tensors, temperature: float) -> list[Tensor]:
        ours, theirs = scores.logits(student[0]), scores.logits(teacher[0])
        rest = relative_errors(student[1:], teacher[1:], temperature)
        return [divergence(ours, theirs, temperature, scores.axis), *rest]

    return terms


def cross_entropy_of(scores: ClassScores) -> Callable[[Tensors, Tensor], Tensor]:
    """Mean cross-entropy of the first output, for labels ``(N,)``."""
    return lambda outputs, labels: functional.cross_entropy(scores.logits(outputs[0]), labels)


def binary_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 * KL`` of independent yes-or-no answers, given as logits; the mean over all of them."""
    probability = torch.sigmoid(teacher / temperature)
    cross = functional.binary_cross_entropy_with_logits(student / temperature, probability)
    entropy = functional.binary_cross_entropy_with_logits(teacher / temperature, probability)
    return (cross - entropy) * temperature**2


def binary_divergence_of_first(scores: BinaryScores) -> Terms:
    """`binary_divergence` of the first output, and `relative_error` of the others."""

    def terms(student: Tensors, teacher: Tensors, temperature: float) -> list[Tensor]:
        ours, theirs = scores.logits(student[0]), scores.logits(teacher[0])
        return [binary_divergence(ours, theirs, temperature), *relative_errors(student[1:], teacher[1:], temperature)]

    return terms


def angles(student: Tensors, teacher: Tensors, _temperature: float) -> list[Tensor]:
    """One minus the cosine between both embeddings, averaged over samples, for every output."""
    return [
        1 - functional.cosine_similarity(s.flatten(1), t.flatten(1)).mean()
        for s, t in zip(student, teacher, strict=True)
        if s.is_floating_point()
    ]
