"""The one training loop: distillation, fine-tuning and quantization-aware training differ only in their loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from pipeline.core import StageError
from pipeline.data import Batch, SampleSet
from pipeline.progress import Progress
from pipeline.recipe import Augmentation, TrainingConfig

StepLoss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True, slots=True)
class EpochLog:
    """Mean training loss of one epoch, and the metric on held-out samples after it (a ratio, or None)."""

    epoch: int
    loss: float
    metric: float | None


def fit(
    module: nn.Module,
    loss: StepLoss,
    samples: SampleSet,
    config: TrainingConfig,
    *,
    seed: int,
    validate: Callable[[nn.Module], float | None] | None = None,
    label: str = "train",
) -> list[EpochLog]:
    """Train ``module`` in place by SGD with momentum under a one-cycle schedule (https://arxiv.org/abs/1708.07120).

    Args:
        loss: Called as ``loss(module, batch)`` with an augmented batch; returns a scalar.
        validate: Metric of the module on held-out samples, called after each epoch in eval mode.
        label: What the progress bar says.

    Returns:
        One log per epoch. The module is left in eval mode.

    Raises:
        StageError: The loss is no longer finite.
    """
    set_seed(seed)
    accelerator = Accelerator()
    loader = samples.loader(config.batch_size, shuffle_seed=seed, drop_last=True)
    optimizer = torch.optim.SGD(
        module.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay, nesterov=True
    )
    steps = config.epochs * len(loader)
    planned = max(steps, 2)  # the one-cycle schedule needs a step to rise in
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=planned, pct_start=max(config.warmup_ratio, 2 / planned)
    )
    module, optimizer, loader, schedule = accelerator.prepare(module, optimizer, loader, schedule)
    augment = augmentation(config.augment)

    logs = []
    with Progress(label, total=steps, enabled=accelerator.is_main_process) as progress:
        for epoch in range(config.epochs):
            module.train()
            total = 0.0
            for step, batch in enumerate(loader, start=1):
                batch = Batch((augment(batch.inputs[0]), *batch.inputs[1:]), batch.labels)
                optimizer.zero_grad()
                value = loss(module, batch)
                accelerator.backward(value)
                if config.max_grad_norm is not None:
                    accelerator.clip_grad_norm_(module.parameters(), config.max_grad_norm)
                optimizer.step()
                schedule.step()
                total += value.item()
                progress.advance(loss=total / step)
            if not total < float("inf"):
                raise StageError("the training loss is not finite", fix="lower learning_rate")
            module.eval()
            metric = None if validate is None else validate(accelerator.unwrap_model(module))
            logs.append(EpochLog(epoch + 1, total / len(loader), metric))
            progress.note(**({} if metric is None else {"metric": metric}))
    return logs


def augmentation(config: Augmentation) -> Callable[[Tensor], Tensor]:
    """The random changes that a recipe asks for, on image batches ``(N, C, H, W)``."""
    if config == Augmentation():
        return lambda images: images
    import kornia.augmentation as K

    changes: list[nn.Module] = []
    if config.shift:
        changes.append(_RandomShift(config.shift))
    if config.horizontal_flip:
        changes.append(K.RandomHorizontalFlip(p=0.5))
    return nn.Sequential(*changes)


class _RandomShift(nn.Module):
    """Pad by ``pixels`` zeros and crop back to the original size at random."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self._pixels = pixels

    def forward(self, images: Tensor) -> Tensor:
        import kornia.augmentation as K

        return K.RandomCrop(images.shape[-2:], padding=self._pixels)(images)  # type: ignore[no-any-return]
