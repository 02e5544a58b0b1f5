"""The one training loop: distillation, fine-tuning and quantization-aware training differ only in their loss.

It runs through Hugging Face accelerate, so ``accelerate launch`` spreads it over processes, GPUs or hosts. Each step's
batch is divided among them, so the gradient is that of one process with the whole batch.
"""

from __future__ import annotations

import io
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, broadcast, set_seed
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.core import StageError
from pipeline.core.files import read_sealed, write_sealed
from pipeline.data.places import NOWHERE
from pipeline.data.samples import Batch, SampleSet
from pipeline.machine.memory import footprint, require_batch
from pipeline.progress import Progress
from pipeline.recipe import TrainingConfig
from pipeline.training.augmentation import augmentation
from pipeline.training.log import TrainingLog

_MOMENTUM_SWING = 0.05  # of the one-cycle schedule: momentum falls while the rate rises
_SHORTEST_CYCLE = 3  # steps: one to rise in, one to fall in, and the one that the schedule takes after the last

logger = logging.getLogger(__name__)

StepLoss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True, slots=True)
class EpochLog:
    """Mean training loss of one epoch, and the metric on held-out samples after it, or None."""

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
    higher_is_better: bool = True,
    label: str = "train",
    checkpoint: Path | None = None,
    before_step: Callable[[float], None] | None = None,
    log: Path | None = None,
) -> list[EpochLog]:
    """Train ``module`` in place under a one-cycle schedule (https://arxiv.org/abs/1708.07120).

    The module keeps the weights of the last epoch or, where ``early_stop`` is set, of the epoch with the best metric.
    Where ``ema`` is set, the metric and the weights are those of the moving average.

    Args:
        loss: Called as ``loss(module, batch)`` with an augmented batch; returns a scalar. Where it is a module itself,
            its parameters are trained too.
        validate: Metric of the module on held-out samples, called after each epoch in eval mode.
        higher_is_better: Its direction, which decides what the best epoch is.
        label: What the progress bar says.
        checkpoint: Where the state is kept while training, every ``checkpoint_minutes``. Training that was killed
            resumes from it; on a CPU and in one process it ends in the same weights, bit for bit. Removed at the end.
        before_step: Called before each step with the share of all steps that are done, in [0, 1): freezes parts of the
            module after a while. It must not count calls, so that a resumed training does the same.
        log: CSV file of every step's and epoch's loss, see `TrainingLog`. A resumed training continues it.

    Returns:
        One log per epoch. The module is left in eval mode.

    Raises:
        StageError: The loss is no longer finite, or the checkpoint belongs to another training.
        EdgewrightError: A step does not fit into memory.
    """
    training = _Training(module, loss, samples, config, seed, checkpoint, higher_is_better)
    training.require_memory(label, samples)
    training.resume()
    state = training.state
    with (
        Progress(label, total=training.steps, enabled=training.leads) as progress,
        TrainingLog(log if training.leads else None, keep_bytes=state.logged) as journal,
    ):
        progress.advance(training.steps_done)
        while state.epoch < config.epochs and not _has_stalled(state.logs, config.early_stop, higher_is_better):
            for value, rate in training.epoch(before_step):
                progress.advance(loss=state.total / state.step)
                journal.write(state.epoch + 1, state.step, value, rate)
                state.logged = journal.size
                training.save_when_due()
            done = training.end_epoch(validate)
            progress.note(**({} if done.metric is None else {"metric": done.metric}))
            journal.write(done.epoch, None, done.loss, metric=done.metric)
    training.finish()
    return state.logs


def best_epoch(logs: list[EpochLog], higher_is_better: bool = True) -> int:
    """The first epoch with the best metric; the last epoch where there is no metric.

    >>> best_epoch([EpochLog(1, 0.3, 0.8), EpochLog(2, 0.2, 0.9), EpochLog(3, 0.1, 0.9)])
    2
    """
    scored = [log for log in logs if log.metric is not None]
    sign = 1 if higher_is_better else -1
    return max(scored, key=lambda log: (sign * (log.metric or 0.0), -log.epoch)).epoch if scored else logs[-1].epoch


@dataclass(slots=True)
class _State:
    """The state of a training besides its weights: all that a resumed one needs to continue exactly.

    Attributes:
        epoch: Epochs finished.
        step: Steps finished in the epoch under way.
        total: Sum of their losses.
        order: The sampler's random state at the beginning of that epoch.
        random: torch's random state, which augmentation and dropout draw from.
        best: The weights of the best epoch so far, where one is to be chosen.
        logged: Bytes of the log that cover the steps so far.
    """

    epoch: int = 0
    step: int = 0
    total: float = 0.0
    order: Tensor | None = None
    random: Tensor | None = None
    logs: list[EpochLog] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    logged: int = 0


class _Training:
    """A module and everything that changes while it is trained."""

    def __init__(
        self,
        module: nn.Module,
        loss: StepLoss,
        samples: SampleSet,
        config: TrainingConfig,
        seed: int,
        checkpoint: Path | None,
        higher_is_better: bool,
    ) -> None:
        self._config, self._checkpoint, self._higher_is_better = config, checkpoint, higher_is_better
        self._accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=True))
        set_seed(seed, device_specific=True)  # so that processes augment differently
        loader = samples.loader(config.batch_size, shuffle_seed=seed, drop_last=True)
        self._order = loader.generator
        self.steps = config.epochs * len(loader)
        own = list(loss.parameters()) if isinstance(loss, nn.Module) else []
        self._parameters = [*module.parameters(), *own]
        optimizer = _optimizer(self._parameters, config)
        schedule = _one_cycle(optimizer, config, self.steps)
        self._module, self._optimizer, self._loader, self._schedule = self._accelerator.prepare(
            module, optimizer, loader, schedule
        )
        self._loss = self._accelerator.prepare(loss) if own else loss
        self._bare = self._accelerator.unwrap_model(self._module)
        self._average = None if config.ema is None else _moving_average(self._bare, config.ema)
        self._scored = self._bare if self._average is None else self._average.module
        places = NOWHERE if samples.form is None else samples.form.places
        self._augment = augmentation(config.augment, samples.preprocessing, places)
        self._parts: dict[str, Any] = {
            "module": self._bare,
            "optimizer": self._optimizer,
            "schedule": self._schedule,
            **({"average": self._average} if self._average is not None else {}),
            **({"loss": self._accelerator.unwrap_model(self._loss)} if own else {}),
        }
        self._identity = {"training": config.model_dump(mode="json"), "seed": seed, "samples": len(samples)}
        self._saved = time.monotonic()
        self.state = _State()

    @property
    def leads(self) -> bool:
        """Whether this is the one process that writes."""
        return bool(self._accelerator.is_main_process)

    @property
    def steps_done(self) -> int:
        """Of all epochs."""
        return self.state.epoch * len(self._loader) + self.state.step

    def require_memory(self, label: str, samples: SampleSet) -> None:
        """Refuse batches that do not fit, where the memory is this machine's and not an accelerator's.

        Counted are the activations that the backward pass needs, the gradients, what the optimizer keeps, the moving
        average and the best weights.
        """
        if self._accelerator.device.type != "cpu":
            return
        self._bare.eval()  # so that no statistics change; an epoch starts by undoing this

        def run(count: int) -> object:
            with self._arithmetic():
                return self._bare(*samples.stand_ins(count))

        weights = sum(parameter.nbytes for parameter in self._parameters)
        copies = 3 if self._config.optimizer == "adamw" else 2
        copies += (self._config.ema is not None) + (self._config.early_stop is not None)
        share = max(1, min(self._config.batch_size, len(samples)) // self._accelerator.num_processes)
        step, setting = f"{label}: training", f"{label}.batch_size"
        require_batch(step, footprint(run), share, extra=copies * weights, setting=setting)

    def resume(self) -> None:
        """Restore the state of the checkpoint, if there is one."""
        restored = None if self._checkpoint is None else _restore(self._checkpoint, self._parts, self._identity)
        if restored is None:
            return
        self.state = restored
        self._order.set_state(self.state.order)
        logger.debug("resumed from %s: epoch %d, step %d", self._checkpoint, self.state.epoch + 1, self.state.step)
        if self._accelerator.num_processes > 1:
            self.state.random = None  # it belongs to the first process: with it, all processes would augment alike

    def epoch(self, before_step: Callable[[float], None] | None) -> Iterator[tuple[float, float]]:
        """Train on the rest of the epoch; yields the loss and the learning rate of each step."""
        state = self.state
        self._module.train()
        state.order = self._order.get_state()
        remaining = itertools.islice(self._loader, state.step, None)
        if state.random is not None:
            torch.set_rng_state(state.random)
            state.random = None
        for batch in remaining:
            self._optimizer.zero_grad()
            if before_step is not None:
                before_step(self.steps_done / self.steps)
            rate = self._schedule.get_last_lr()[0]
            value = self._step(self._augment(batch))
            state.step += 1
            state.total += value
            yield value, rate

    def _step(self, batch: Batch) -> float:
        with self._arithmetic():
            value = self._loss(self._module, batch)
        self._accelerator.backward(value)
        if self._config.max_grad_norm is not None:
            self._accelerator.clip_grad_norm_(self._parameters, self._config.max_grad_norm)
        self._optimizer.step()
        self._schedule.step()
        if self._average is not None:
            self._average.update_parameters(self._bare)
        return float(value.item())

    def _arithmetic(self) -> torch.autocast:
        mixed = self._config.precision != "fp32"
        return torch.autocast(self._accelerator.device.type, torch.bfloat16, enabled=mixed)

    def end_epoch(self, validate: Callable[[nn.Module], float | None] | None) -> EpochLog:
        """Score the epoch, and keep its weights where they are the best so far.

        Raises:
            StageError: Its loss is not finite.
        """
        state = self.state
        mean = float(self._accelerator.reduce(torch.tensor(state.total / state.step), reduction="mean"))
        if not mean < float("inf"):
            raise StageError("the training loss is not finite", fix="lower learning_rate")
        _share_buffers(self._accelerator, self._bare)
        self._scored.eval()
        log = EpochLog(state.epoch + 1, mean, None if validate is None else validate(self._scored))
        state.logs.append(log)
        logger.debug("epoch %d: loss %.6g, held-out metric %s", log.epoch, log.loss, log.metric)
        if self._config.early_stop is not None and best_epoch(state.logs, self._higher_is_better) == log.epoch:
            state.best = {name: tensor.clone() for name, tensor in self._scored.state_dict().items()}
        state.epoch, state.step, state.total = log.epoch, 0, 0.0
        return log

    def save_when_due(self) -> None:
        """Write the checkpoint if the last one is too old."""
        if self._checkpoint is None or time.monotonic() - self._saved < 60 * self._config.checkpoint_minutes:
            return
        if self.leads:
            self.state.random = torch.get_rng_state()
            _save(self._checkpoint, self._parts, self.state, self._identity)
            self.state.random = None
        self._saved = time.monotonic()

    def finish(self) -> None:
        """Put the chosen weights into the module, and remove the checkpoint."""
        if self.state.best is not None or self._average is not None:
            self._bare.load_state_dict(self.state.best or self._scored.state_dict())
            logger.debug("kept the weights of %s", "the best epoch" if self.state.best else "the moving average")
        self._bare.eval()
        if self._checkpoint is not None and self.leads:
            self._checkpoint.unlink(missing_ok=True)


def _has_stalled(logs: list[EpochLog], patience: int | None, higher_is_better: bool) -> bool:
    return patience is not None and len(logs) > 0 and len(logs) - best_epoch(logs, higher_is_better) >= patience


def _optimizer(parameters: list[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters, config.learning_rate, config.momentum, weight_decay=config.weight_decay, nesterov=True
    )


def _one_cycle(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    planned = max(steps, _SHORTEST_CYCLE)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        config.learning_rate,
        total_steps=planned,
        pct_start=max(config.warmup_ratio, 2 / planned),
        base_momentum=max(0.0, config.momentum - _MOMENTUM_SWING),
        max_momentum=min(0.999, config.momentum + _MOMENTUM_SWING),
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
    """Write the state; a failure leaves the previous file in place."""
    content = {
        "identity": identity,
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "state": {
            **{name: getattr(state, name) for name in state.__slots__},
            "logs": [asdict(log) for log in state.logs],
        },
    }
    buffer = io.BytesIO()  # torch's own writer ends the process where the disk is full
    torch.save(content, buffer)
    write_sealed(path, buffer.getvalue())


def _restore(path: Path, parts: dict[str, Any], identity: dict[str, Any]) -> _State | None:
    """The state of a training that was killed, with its parts restored; None where there is none, or it is damaged."""
    sealed = read_sealed(path)
    if sealed is None:
        return None
    content = torch.load(io.BytesIO(sealed), weights_only=True)  # tensors and plain values: no code is unpickled
    if content["identity"] != identity:
        raise StageError("is the checkpoint of another training", where=str(path), fix="remove it")
    for name, part in parts.items():
        part.load_state_dict(content["parts"][name])
    logs = [EpochLog(**log) for log in content["state"]["logs"]]
    return _State(**{**content["state"], "logs": logs})
