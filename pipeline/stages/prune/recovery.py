"""Recovery: training after a round of pruning, with the original as teacher, that a killed run can go on with."""

from __future__ import annotations

import io
import logging
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn

from pipeline.core import Model
from pipeline.core.files import read_sealed, write_sealed
from pipeline.data.samples import SampleSet
from pipeline.models.duplicate import copy_module
from pipeline.recipe import PruneConfig
from pipeline.stages.prune.sparsity import zeros_stay
from pipeline.tasks.task import Task
from pipeline.training.loop import EpochLog, fit
from pipeline.training.losses import distillation_loss

logger = logging.getLogger(__name__)


def recover(
    model: Model,
    module: nn.Module,
    config: PruneConfig,
    train: SampleSet | None,
    task: Task | None,
    *,
    seed: int,
    checkpoint: Path | None,
) -> list[EpochLog]:
    """Train a module in place, its zeros staying zeros; a recovery that a killed run has finished is read back.

    Args:
        model: Its original teaches.
        task: What for.
        checkpoint: Where the training's state is kept. Its result is kept beside that, until `forget_rounds`.

    Returns:
        One log an epoch; none where the configuration asks for no recovery.
    """
    if config.recover is None or train is None or task is None:
        return []
    module.requires_grad_(True)
    finished = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}-finished")
    if finished is not None and (kept := read_sealed(finished)) is not None:
        logger.debug("a recovery that was finished earlier is read back")
        return _read(kept, module)
    teacher = copy_module(model.reference).requires_grad_(False).eval()
    loss = distillation_loss(teacher, task, temperature=config.recover.temperature, alpha=config.recover.alpha)
    with zeros_stay(module) if config.sparsity is not None else nullcontext():
        logs = fit(module, loss, train, config.recover, seed=seed, label="recover", checkpoint=checkpoint)
    if finished is not None and PartialState().is_main_process:
        _write(finished, module, logs)
    return logs


def state_of_round(checkpoint: Path | None, number: int) -> Path | None:
    """Where the state of one round is kept, beside the stage's own checkpoint."""
    return None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}-{number}")


def forget_rounds(checkpoint: Path | None) -> None:
    """Remove what is kept of every round."""
    if checkpoint is not None:
        for state in checkpoint.parent.glob(f"{checkpoint.name}-*"):
            state.unlink(missing_ok=True)


def _write(path: Path, module: nn.Module, logs: list[EpochLog]) -> None:
    content = {"weights": module.state_dict(), "logs": [asdict(epoch) for epoch in logs]}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_sealed(path, buffer.getvalue())


def _read(content: bytes, module: nn.Module) -> list[EpochLog]:
    kept = torch.load(io.BytesIO(content), weights_only=True)
    module.load_state_dict(kept["weights"])
    return [EpochLog(**epoch) for epoch in kept["logs"]]
