"""The one training loop: distillation, fine-tuning and quantization-aware training differ only in their loss.

It runs through Hugging Face accelerate, so ``accelerate launch`` spreads it over processes, GPUs or hosts: each step's
batch is divided among them, and so the gradient is that of one process with the whole batch.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, broadcast, set_seed
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.core import StageError
from pipeline.data import Batch, SampleSet
from pipeline.progress import Progress
from pipeline.recipe import Augmentation, TrainingConfig

_MOMENTUM_SWING = 0.05  # of the one-cycle schedule: momentum falls while the rate rises

StepLoss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True, slots=True)
class EpochLog:
    """Mean training loss of one epoch, and the metric on held-out samples after it (a ratio, or None)."""

    epoch: int
    loss: float
    metric: float | None


@dataclass(slots=True)
class _State:
    """Where a training stands, beside its weights: all that a resumed one needs to go on exactly.

    Attributes:
        epoch: Epochs finished.
        step: Steps finished in the epoch under way.
        total: Sum of their losses.
        order: The sampler's random state at the beginning of that epoch.
        random: torch's random state, which augmentation and dropout draw from.
        best: The weights of the best epoch so far, where one is to be chosen.
    """

    epoch: int = 0
    step: int = 0
    total: float = 0.0
    order: Tensor | None = None
    random: Tensor | None = None
    logs: list[EpochLog] = field(default_factory=list)
    best: dict[str, Tensor] | None = None


def fit(
    module: nn.Module,
    loss: StepLoss,
    samples: SampleSet,
    config: TrainingConfig,
    *,
    seed: int,
    validate: Callable[[nn.Module], float | None] | None = None,
    label: str = "train",
    checkpoint: Path | None = None,
    before_step: Callable[[float], None] | None = None,
) -> list[EpochLog]:
    """Train ``module`` in place under a one-cycle schedule (https://arxiv.org/abs/1708.07120).

    The weights of the last epoch stay or, where ``early_stop`` is set, those of the epoch with the best metric. Where
    ``ema`` is set, the metric and the weights are those of the moving average.

    Args:
        loss: Called as ``loss(module, batch)`` with an augmented batch; returns a scalar.
        validate: Metric of the module on held-out samples, called after each epoch in eval mode; larger is better.
        label: What the progress bar says.
        checkpoint: Where the state is kept while training, every ``checkpoint_minutes``. Training that was killed goes
            on from it; on a CPU and in one process it ends in the same weights, bit for bit. Removed at the end.
        before_step: Called before each step with the share of all steps that are done, in [0, 1): what freezes parts
            of the module after a while. It must not count, so that a resumed training does the same.

    Returns:
        One log per epoch. The module is left in eval mode.

    Raises:
        StageError: The loss is no longer finite, or the checkpoint belongs to another training.
    """
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=True))
    set_seed(seed, device_specific=True)  # so that processes augment differently
    loader = samples.loader(config.batch_size, shuffle_seed=seed, drop_last=True)
    order = loader.generator
    optimizer = _optimizer(module, config)
    steps = config.epochs * len(loader)
    planned = max(steps, 2)  # the one-cycle schedule needs a step to rise in
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        config.learning_rate,
        total_steps=planned,
        pct_start=max(config.warmup_ratio, 2 / planned),
        base_momentum=max(0.0, config.momentum - _MOMENTUM_SWING),
        max_momentum=min(0.999, config.momentum + _MOMENTUM_SWING),
    )
    module, optimizer, loader, schedule = accelerator.prepare(module, optimizer, loader, schedule)
    bare = accelerator.unwrap_model(module)
    average = None if config.ema is None else _moving_average(bare, config.ema)
    scored = bare if average is None else average.module
    augment = augmentation(config.augment)

    parts: dict[str, Any] = {"module": bare, "optimizer": optimizer, "schedule": schedule}
    if average is not None:
        parts["average"] = average
    identity = {"training": config.model_dump(mode="json"), "seed": seed, "samples": len(samples)}
    state = _State()
    if checkpoint is not None and checkpoint.exists():
        state = _restore(checkpoint, parts, identity)
        order.set_state(state.order)
    saved = time.monotonic()

    with Progress(label, total=steps, enabled=accelerator.is_main_process) as progress:
        progress.advance(state.epoch * len(loader) + state.step)
        while state.epoch < config.epochs and not _has_stalled(state.logs, config.early_stop):
            module.train()
            state.order = order.get_state()
            remaining = itertools.islice(loader, state.step, None)
            if state.random is not None:
                torch.set_rng_state(state.random)
                state.random = None
            for batch in remaining:
                batch = Batch((augment(batch.inputs[0]), *batch.inputs[1:]), batch.labels)
                optimizer.zero_grad()
                if before_step is not None:
                    before_step((state.epoch * len(loader) + state.step) / steps)
                with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                    value = loss(module, batch)
                accelerator.backward(value)
                if config.max_grad_norm is not None:
                    accelerator.clip_grad_norm_(module.parameters(), config.max_grad_norm)
                optimizer.step()
                schedule.step()
                if average is not None:
                    average.update_parameters(bare)
                state.step += 1
                state.total += value.item()
                progress.advance(loss=state.total / state.step)
                if checkpoint is not None and time.monotonic() - saved >= 60 * config.checkpoint_minutes:
                    if accelerator.is_main_process:
                        state.random = torch.get_rng_state()
                        _save(checkpoint, parts, state, identity)
                        state.random = None
                    saved = time.monotonic()
            mean = float(accelerator.reduce(torch.tensor(state.total / state.step), reduction="mean"))
            if not mean < float("inf"):
                raise StageError("the training loss is not finite", fix="lower learning_rate")
            _share_buffers(accelerator, bare)
            scored.eval()
            metric = None if validate is None else validate(scored)
            state.logs.append(EpochLog(state.epoch + 1, mean, metric))
            if config.early_stop is not None and best_epoch(state.logs) == state.epoch + 1:
                state.best = {name: tensor.clone() for name, tensor in scored.state_dict().items()}
            state.epoch, state.step, state.total = state.epoch + 1, 0, 0.0
            progress.note(**({} if metric is None else {"metric": metric}))

    if state.best is not None or average is not None:
        bare.load_state_dict(state.best or scored.state_dict())
    bare.eval()
    if checkpoint is not None and accelerator.is_main_process:
        checkpoint.unlink(missing_ok=True)
    return state.logs


def best_epoch(logs: list[EpochLog]) -> int:
    """The first epoch with the highest metric; the last epoch where there is no metric.

    >>> best_epoch([EpochLog(1, 0.3, 0.8), EpochLog(2, 0.2, 0.9), EpochLog(3, 0.1, 0.9)])
    2
    """
    scored = [log for log in logs if log.metric is not None]
    return max(scored, key=lambda log: (log.metric, -log.epoch)).epoch if scored else logs[-1].epoch


def _has_stalled(logs: list[EpochLog], patience: int | None) -> bool:
    return patience is not None and len(logs) > 0 and len(logs) - best_epoch(logs) >= patience


def _optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adamw":
        return torch.optim.AdamW(module.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        module.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay, nesterov=True
    )


def _moving_average(module: nn.Module, decay: float) -> AveragedModel:
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return AveragedModel(module, multi_avg_fn=average, use_buffers=True)


def _share_buffers(accelerator: Accelerator, module: nn.Module) -> None:
    """Give every process the batch-norm statistics of the first, so that all measure the same metric."""
    if accelerator.num_processes > 1:
        for buffer in module.buffers():
            broadcast(buffer, from_process=0)


def _save(path: Path, parts: dict[str, Any], state: _State, identity: dict[str, Any]) -> None:
    """Write the state; the file is complete or the one before stays."""
    partial = path.with_name(f".{path.name}.partial")
    content = {
        "identity": identity,
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "state": {
            **{name: getattr(state, name) for name in state.__slots__},
            "logs": [asdict(log) for log in state.logs],
        },
    }
    torch.save(content, partial)
    partial.replace(path)


def _restore(path: Path, parts: dict[str, Any], identity: dict[str, Any]) -> _State:
    content = torch.load(path, weights_only=True)  # tensors and plain values: no code is unpickled
    if content["identity"] != identity:
        raise StageError("is the checkpoint of another training", where=str(path), fix="remove it")
    for name, part in parts.items():
        part.load_state_dict(content["parts"][name])
    logs = [EpochLog(**log) for log in content["state"]["logs"]]
    return _State(**{**content["state"], "logs": logs})


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
