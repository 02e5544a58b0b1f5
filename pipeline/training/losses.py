"""The loss of a student against its teacher (Hinton et al. 2015, https://arxiv.org/abs/1503.02531)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.outputs import output_tuple
from pipeline.data.samples import Batch
from pipeline.recipe import Relations
from pipeline.tasks.task import Task
from pipeline.training.loop import StepLoss


def distillation_loss(
    teacher: nn.Module, task: Task, *, temperature: float, alpha: float, relations: Relations | None = None
) -> StepLoss:
    """The loss of a student against its teacher's outputs, with the labels mixed in where a batch has them.

    ``alpha * terms[0] + (1 - alpha) * label_loss``, ``alpha`` being 1 without labels, where ``terms`` and the loss
    against labels are the task's. The terms of further outputs add up, and so does the loss on the first one's
    ``relations``. Where only the labels count (``alpha`` 0), the teacher is not run.
    """

    def loss(student: nn.Module, batch: Batch) -> Tensor:
        outputs = output_tuple(student(*batch.inputs))
        against_labels = task.label_loss is not None and batch.labels is not None
        if alpha == 0 and relations is None and against_labels and len(outputs) == 1:
            assert task.label_loss is not None  # mypy does not follow the flag
            return task.label_loss(outputs, batch.labels)
        with torch.no_grad():  # not inference mode, whose tensors cannot take part in the student's backward pass
            targets = output_tuple(teacher(*batch.inputs))
        terms = list(task.terms(outputs, targets, temperature))
        if against_labels:
            assert task.label_loss is not None
            terms[0] = alpha * terms[0] + (1 - alpha) * task.label_loss(outputs, batch.labels)
        if relations is not None:
            terms.append(relations.distance * distance_error(outputs[0], targets[0]))
            terms.append(relations.angle * angle_error(outputs[0], targets[0]))
        return torch.stack(terms).sum()

    return loss


def distance_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber error of the distances between the samples of a batch, each in units of their mean: a scalar.

    Equation 4 of Park et al. 2019 (https://arxiv.org/abs/1904.05068), averaged over pairs.

    >>> near_and_far = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 3 and 2
    >>> distance_error(10 * near_and_far, near_and_far)
    tensor(0.)
    """
    s, t = (torch.pdist(outputs.flatten(1).float()) for outputs in (student, teacher))
    if len(s) == 0:
        return s.sum()  # a batch of one has no pairs
    s, t = (distances / distances.mean().clamp_min(1e-12) for distances in (s, t))
    return functional.smooth_l1_loss(s, t)


def angle_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber error of the cosines of the angles between any three samples of a batch: a scalar.

    Equation 6 of Park et al. 2019, averaged over ordered triplets. It takes memory for ``N^3`` cosines.
    """
    count = len(student)
    s, t = (_cosines(outputs.flatten(1).float()) for outputs in (student, teacher))
    triplets = max(1, count * (count - 1) * (count - 2))
    return functional.smooth_l1_loss(s, t, reduction="sum") / triplets  # the others' cosines are 0 or 1 in both


def _cosines(points: Tensor) -> Tensor:
    """``(N, N, N)``: at point i, the cosine of the angle between the directions to j and k."""
    directions = functional.normalize(points[None, :, :] - points[:, None, :], dim=2)
    return directions @ directions.transpose(1, 2)
