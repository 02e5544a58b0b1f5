"""The loss of a student against its teacher (Hinton et al. 2015, https://arxiv.org/abs/1503.02531)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.data import Batch
from pipeline.metrics import classifies
from pipeline.training import StepLoss


def distillation_loss(teacher: nn.Module, *, temperature: float, alpha: float) -> StepLoss:
    """The loss of a student against its teacher's outputs, with the labels mixed in where a batch has them.

    Logits: ``alpha * T^2 * KL(softmax(t / T) || softmax(s / T)) + (1 - alpha) * CE(s, labels)``, ``alpha`` being 1
    without labels. Any other output: the squared error relative to the teacher's mean square, so that outputs of
    different units weigh the same. Several outputs add up.
    """

    def loss(student: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():  # inference mode would not do: its tensors cannot enter the student's backward pass
            targets = _outputs(teacher, batch)
        outputs = _outputs(student, batch)
        if not classifies(targets):
            return torch.stack([_relative_error(s, t) for s, t in zip(outputs, targets, strict=True)]).sum()
        soft = _divergence(outputs[0], targets[0], temperature)
        if batch.labels is not None:
            soft = alpha * soft + (1 - alpha) * functional.cross_entropy(outputs[0], batch.labels)
        rest = [_relative_error(s, t) for s, t in zip(outputs[1:], targets[1:], strict=True)]
        return torch.stack([soft, *rest]).sum()

    return loss


def _outputs(module: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    outputs = module(*batch.inputs)
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, dim=1),
        functional.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2  # keeps the gradient's size independent of the temperature


def _relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    return functional.mse_loss(student, teacher) / teacher.square().mean().clamp_min(1e-12)
