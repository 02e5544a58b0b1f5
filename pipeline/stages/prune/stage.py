"""Structured pruning: channels are removed until the network meets its budgets, so every later file is smaller.

1. Residual blocks are removed entirely, where the configuration asks for it (`blocks`).
2. In one round, or several with ever tighter limits, channels are removed (`selection`), and the rest is trained
   (`recovery`). In the last round, single weights become zero before the training (`sparsity`).
3. The record says what was asked for, what was reached, and what could not be removed.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.fx import GraphModule

from pipeline.core import Model, SkippedLayer, StageError, StageRecord
from pipeline.data.samples import SampleSet, with_examples
from pipeline.models.capture import count_macs, count_parameters
from pipeline.models.layers import matching_in
from pipeline.recipe import PruneConfig
from pipeline.stages.prune.blocks import Shortened, remove_blocks
from pipeline.stages.prune.channels import Step
from pipeline.stages.prune.limits import CostLimit, cost_limits, limits_per_round
from pipeline.stages.prune.recovery import forget_rounds, recover, state_of_round
from pipeline.stages.prune.selection import remove_channels
from pipeline.stages.prune.sensitivity import Curve
from pipeline.stages.prune.sparsity import NOTE, sparsify, zero_ratio
from pipeline.stages.prune.widths import head_counts, layer_widths, output_channels
from pipeline.target import Target
from pipeline.tasks.lookup import for_task, task_of
from pipeline.tasks.task import Task
from pipeline.training.loop import EpochLog

logger = logging.getLogger(__name__)


def prune(
    model: Model,
    config: PruneConfig,
    data: SampleSet | None = None,
    *,
    task: Task | None = None,
    train: SampleSet | None = None,
    target: Target | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
) -> Model:
    """Remove channels until every budget of ``config`` is met.

    Budgets are shares of the *original*, so a recipe may prune a little, distill, and prune on.

    Args:
        data: Samples that importance ``taylor`` and ``activation``, allocation ``sensitivity`` and residual blocks are
            measured on.
        task: What the model is for; suggested by the model and the labels when absent.
        train: What ``recover`` trains on.
        target: Where latency is measured, if that is a budget.
        checkpoint: Where ``recover`` keeps its state (and, beside it, that of each round), so that a killed one goes
            on; removed at the end. Not used where latency is a budget: another timing might remove other channels.

    Raises:
        StageError: The model is a program rather than a module, cannot be traced, or cannot get that small, or
            ``skip`` names no layer of it.
    """
    started, asked = time.monotonic(), config
    refuse_programs(model)
    config = config.model_copy(update={"skip": _skipped(model, config)})
    if config.recover is not None and train is None:
        raise StageError("recover needs samples to train on", where="prune", fix="name data.train")
    model = model if data is None else with_examples(model, data)
    if (seen := train or data) is not None:
        task = task_of(model, seen, task)
        data, train = (None if samples is None else for_task(samples, task) for samples in (data, train))
    shortened = remove_blocks(model, config, data, task)
    limits = cost_limits(model, config, target)
    if any(limit.name == "latency" for limit in limits):
        checkpoint = None
    pruned = _Pruned(shortened.module)
    for number, due in enumerate(limits_per_round(limits, shortened.module, config.iterations), start=1):
        pruned.remove_channels(model, config, data, task, due)
        if config.sparsity is not None and number == config.iterations:
            pruned.zero_weights(config)
        state = state_of_round(checkpoint, number)
        logs = recover(model, pruned.module, config, train, task, seed=seed + number, checkpoint=state)
        pruned.note_round(model, due, logs)
    forget_rounds(checkpoint)
    record = _record(model, asked, shortened, pruned, limits, time.monotonic() - started)
    return model.after(pruned.module, record)


def _skipped(model: Model, config: PruneConfig) -> tuple[str, ...]:
    """The names of the modules that are not pruned."""
    found = matching_in((model.reference, model.module), config.skip, where="prune: skip")
    return tuple(dict.fromkeys(name for names in found.values() for name in names))


@dataclass(slots=True)
class _Pruned:
    """What has become of a module so far.

    Attributes:
        steps: Channels removed in all rounds, in that order.
        curves: Sensitivities before the first round.
        skipped: Layers that the latest round had to leave as they were.
        rounds: Per round, its limits, what the network cost after it, and its training.
    """

    module: nn.Module
    steps: list[Step] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    skipped: tuple[SkippedLayer, ...] = ()
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def remove_channels(
        self,
        model: Model,
        config: PruneConfig,
        data: SampleSet | None,
        task: Task | None,
        limits: tuple[CostLimit, ...],
    ) -> None:
        widths = output_channels(model.module)
        selection = remove_channels(replace(model, module=self.module), config, data, task, limits, widths)
        self.module, self.skipped = selection.module, selection.skipped
        self.steps += selection.steps
        self.curves = self.curves or selection.curves

    def zero_weights(self, config: PruneConfig) -> None:
        assert config.sparsity is not None
        self.module, dense = sparsify(self.module, config.sparsity, config.skip)
        self.skipped += dense

    def note_round(self, model: Model, limits: tuple[CostLimit, ...], logs: list[EpochLog]) -> None:
        macs, parameters = count_macs(self.module, model.examples or model.inputs), count_parameters(self.module)
        logger.debug("round %d: %d MACs and %d parameters left", len(self.rounds) + 1, macs, parameters)
        self.rounds.append(
            {
                "budgets": {limit.name: limit.share for limit in limits},
                "macs": macs,
                "parameters": parameters,
                "recovery": [asdict(epoch) for epoch in logs],
            }
        )


def _record(
    model: Model,
    config: PruneConfig,
    shortened: Shortened,
    pruned: _Pruned,
    limits: tuple[CostLimit, ...],
    duration_s: float,
) -> StageRecord:
    module = pruned.module
    details: dict[str, Any] = {
        "budgets": {limit.name: {"asked": limit.share, "reached": limit.kept(module)} for limit in limits},
        "layers": layer_widths(model.module, module),
        "heads": head_counts(model.module, module, pruned.steps),
        "blocks": shortened.blocks,
        "sensitivity": [curve.model_dump(mode="json") for curve in pruned.curves],
    }
    if config.recover is not None:
        details["rounds"] = pruned.rounds
    if config.sparsity is not None:
        details |= {"sparsity_ratio": zero_ratio(module), "sparsity_note": NOTE}
    return StageRecord(
        stage="prune",
        config=config.model_dump(mode="json"),
        duration_s=duration_s,
        parameters=count_parameters(module),
        macs=count_macs(module, model.examples or model.inputs),
        skipped=shortened.skipped + pruned.skipped,
        details=details,
    )


def refuse_programs(model: Model) -> None:
    """Refuse what has no modules whose channels could be removed.

    Raises:
        StageError: The model is a program.
    """
    if model.quantized:
        raise StageError("the model is quantized already", where="prune", fix="list prune before quantize")
    if isinstance(model.module, GraphModule):
        raise StageError(
            "a torch.export program (.pt2) cannot be pruned: its graph holds the sizes of every layer as constants",
            where="prune",
            fix="give the model as factory and weights, or leave prune out",
        )
