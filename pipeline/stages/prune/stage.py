"""Structured pruning: whole channels leave the network until it meets its budgets, so every later file is smaller.

Residual blocks may leave whole before that (`blocks`), single weights become zero after it (`sparsity`), and all of it
may be done in several rounds with training after each. A round of channels:

1. Every set of coupled channels is cut into steps of ``round_to`` channels, the least important channels first.
2. All steps of the network are put in one order: by the importance of what they remove, or by how far they move the
   outputs for what they save.
3. The shortest beginning of that order that meets every budget is found by bisection. Each trial prunes a copy and
   counts or times what is left, so a cost is that of the real network, not a formula's.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.fx import GraphModule

from pipeline.core import Model, SkippedLayer, StageError, StageRecord
from pipeline.data.samples import SampleSet
from pipeline.models.capture import count_macs, count_parameters
from pipeline.models.digest import key_of, weights_sha256
from pipeline.recipe import PruneConfig
from pipeline.stages.prune.blocks import block_damages, removable_blocks, without_blocks
from pipeline.stages.prune.budget import Budget, budgets_of
from pipeline.stages.prune.channels import (
    PRUNABLE,
    CoupledChannels,
    Step,
    coupled_channels,
    is_within,
    pruning_order,
    remove,
    runnable,
    steps_of,
    still_runs,
    traceable_copy,
)
from pipeline.stages.prune.importance import scorer
from pipeline.stages.prune.sensitivity import Curve, damages, sensitivity
from pipeline.stages.prune.sparsity import NOTE, sparsify, zero_ratio, zeros_stay
from pipeline.target import Target
from pipeline.training.loop import EpochLog, fit
from pipeline.training.losses import distillation_loss

_measured: dict[str, list[Curve]] = {}
"""Sensitivities that this process has measured: a search asks for the same ones under many budgets."""


def prune(
    model: Model,
    config: PruneConfig,
    data: SampleSet | None = None,
    *,
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
        train: What ``recover`` trains on.
        target: Where latency is measured, if that is a budget.
        checkpoint: Where ``recover`` keeps its state (and, beside it, that of each round), so that a killed one goes
            on; removed at the end. Not used where latency is a budget: timed anew, the model might be cut elsewhere.

    Raises:
        StageError: The model is a program rather than a module, cannot be traced, or cannot get that small.
    """
    started = time.monotonic()
    _refuse_programs(model)
    if config.recover is not None and train is None:
        raise StageError("recover needs samples to train on", where="prune", fix="name data.train")
    module, blocks, skipped = _without_blocks(model, config, data)
    budgets = budgets_of(model, config, target)
    before = [budget.kept(module) for budget in budgets] if config.iterations > 1 else [1.0] * len(budgets)
    taken: list[Step] = []
    curves: list[Curve] = []
    rounds: list[dict[str, Any]] = []
    if any(budget.name == "latency" for budget in budgets):
        checkpoint = None
    for number in range(1, config.iterations + 1):
        done = number / config.iterations
        due = [replace(b, share=k * (b.share / k) ** done) for b, k in zip(budgets, before, strict=True)]
        cut = _remove_channels(replace(model, module=module), config, data, tuple(due))
        module, left = cut.module, cut.skipped
        taken += cut.steps
        curves = curves or cut.curves
        if config.sparsity is not None and number == config.iterations:
            module, dense = sparsify(module, config.sparsity, config.skip)
            left += dense
        state = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}-{number}")
        recovery = [] if train is None else _recover(model, module, config, train, seed + number, state)
        rounds.append(
            {
                "budgets": {b.name: b.share for b in due},
                "macs": count_macs(module, model.inputs),
                "parameters": count_parameters(module),
                "recovery": [asdict(log) for log in recovery],
            }
        )
    if checkpoint is not None:
        for state in checkpoint.parent.glob(f"{checkpoint.name}-*"):
            state.unlink(missing_ok=True)
    record = StageRecord(
        stage="prune",
        config=config.model_dump(mode="json"),
        duration_s=time.monotonic() - started,
        parameters=count_parameters(module),
        macs=count_macs(module, model.inputs),
        skipped=skipped + left,
        details={
            "budgets": {budget.name: {"asked": budget.share, "reached": budget.kept(module)} for budget in budgets},
            "layers": _widths(model.module, module),
            "heads": _heads(model.module, module, taken),
            "blocks": blocks,
            "sensitivity": [curve.model_dump(mode="json") for curve in curves],
            **({} if config.recover is None else {"rounds": rounds}),
            **({} if config.sparsity is None else {"sparsity_ratio": zero_ratio(module), "sparsity_note": NOTE}),
        },
    )
    return model.after(module, record)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A module without some of its channels, and how they were chosen."""

    module: nn.Module
    steps: list[Step]
    skipped: tuple[SkippedLayer, ...]
    curves: list[Curve]


def _remove_channels(model: Model, config: PruneConfig, data: SampleSet | None, budgets: tuple[Budget, ...]) -> _Cut:
    """One round: the shortest beginning of the pruning order that meets every budget."""
    if not budgets:
        return _Cut(copy.deepcopy(model.module), [], (), [])
    groups, skipped = _removable(model, config, data)
    order = pruning_order(groups, config.max_layer_ratio)
    curves: list[Curve] = []
    if config.allocation == "sensitivity":
        curves = _sensitivity(model, config, groups, data, budgets)
        order = _by_damage(order, curves)

    def pruned(count: int) -> nn.Module:
        return remove(model.module, model.inputs, order[:count])

    def fits(count: int) -> bool:
        module = pruned(count)
        return all(budget.kept(module) <= budget.share for budget in budgets)

    if not fits(len(order)):
        least = pruned(len(order))
        kept = ", ".join(f"{budget.name} is {budget.kept(least):.3f}, not {budget.share:.3f}" for budget in budgets)
        left = "; ".join(f"{layer.layer}: {layer.reason}" for layer in skipped)
        raise StageError(
            f"the budget cannot be reached: with everything removed that may be, {kept} (left alone: {left})",
            where="prune",
            fix="raise the budget or max_layer_ratio, lower round_to, or remove whole blocks (blocks_ratio)",
        )
    count = _first_true(fits, len(order))
    return _Cut(pruned(count), order[:count], skipped, curves)


def _without_blocks(
    model: Model, config: PruneConfig, data: SampleSet | None
) -> tuple[nn.Module, list[dict[str, Any]], tuple[SkippedLayer, ...]]:
    """The module without the residual blocks that leave whole; what each would have moved; those that cannot leave."""
    if config.blocks_ratio is None:
        return model.module, [], ()
    if data is None:
        raise StageError("blocks_ratio needs samples", where="prune", fix="name data.calibration")
    found, skipped = removable_blocks(model.module, model.inputs)
    found = tuple(name for name in found if not is_within(name, config.skip))
    if not found:
        raise StageError("the model has no residual block to remove", where="prune", fix="leave blocks_ratio out")
    damages = block_damages(model.module, found, data)
    gone = list(damages)[: round(config.blocks_ratio * len(found))]
    blocks = [{"block": name, "divergence": moved, "removed": name in gone} for name, moved in damages.items()]
    return without_blocks(model.module, gone), blocks, skipped


def _recover(
    model: Model,
    module: nn.Module,
    config: PruneConfig,
    train: SampleSet,
    seed: int,
    checkpoint: Path | None,
) -> list[EpochLog]:
    """Train a module in place, its zeros staying zeros; what a killed run had trained already is taken from there."""
    if config.recover is None:
        return []
    module.requires_grad_(True)
    finished = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}-finished")
    if finished is not None and finished.exists():
        kept = torch.load(finished, weights_only=True)
        module.load_state_dict(kept["weights"])
        return [EpochLog(**log) for log in kept["logs"]]
    teacher = copy.deepcopy(model.reference).requires_grad_(False).eval()
    loss = distillation_loss(teacher, temperature=config.recover.temperature, alpha=config.recover.alpha)
    with zeros_stay(module) if config.sparsity is not None else nullcontext():
        logs = fit(module, loss, train, config.recover, seed=seed, label="recover", checkpoint=checkpoint)
    if finished is not None and PartialState().is_main_process:
        partial = finished.with_name(f"{finished.name}.partial")
        torch.save({"weights": module.state_dict(), "logs": [asdict(log) for log in logs]}, partial)
        partial.replace(finished)
    return logs


def _removable(
    model: Model, config: PruneConfig, data: SampleSet | None
) -> tuple[list[CoupledChannels], tuple[SkippedLayer, ...]]:
    """The channels that may go. Where the network breaks without all of them, each group is tried on its own."""
    judged = traceable_copy(model.module)
    groups, skipped = coupled_channels(
        judged,
        model.inputs,
        scorer(config.importance, judged, data),
        round_to=config.round_to,
        max_layer_ratio=config.max_layer_ratio,
        skip=config.skip,
    )
    everything = pruning_order(groups, config.max_layer_ratio)
    if still_runs(model.module, lambda: remove(model.module, model.inputs, everything), model.inputs):
        return groups, skipped
    groups, broken = runnable(model.module, model.inputs, groups, config.max_layer_ratio)
    return groups, skipped + broken


def _sensitivity(
    model: Model,
    config: PruneConfig,
    groups: list[CoupledChannels],
    data: SampleSet | None,
    budgets: tuple[Budget, ...],
) -> list[Curve]:
    if data is None:
        raise StageError("allocation 'sensitivity' needs samples", where="prune", fix="name data.calibration")

    def kept_share(module: nn.Module) -> float:
        return sum(budget.kept(module) for budget in budgets) / len(budgets)

    key = key_of(
        model=weights_sha256(model.module),
        original=weights_sha256(model.reference),
        data=data.sha256,
        costs=[budget.name for budget in budgets],
        order=[
            (step.group.layer, step.channels) for group in groups for step in steps_of(group, config.max_layer_ratio)
        ],
    )
    if key not in _measured:
        _measured[key] = sensitivity(model.module, model.inputs, groups, config.max_layer_ratio, data, kept_share)
    return _measured[key]


def _by_damage(order: list[Step], curves: list[Curve]) -> list[Step]:
    """Steps ordered by what they cost for what they save; the steps of one group stay in their order."""
    of_layer = {curve.layer: curve for curve in curves}
    ranked = []
    for layer, steps in itertools.groupby(sorted(order, key=lambda step: step.group.layer), _layer):
        own = list(steps)
        ranked += list(zip(damages(of_layer[layer], len(own)), own, strict=True))
    return [step for _, step in sorted(ranked, key=lambda pair: pair[0])]


def _layer(step: Step) -> str:
    return step.group.layer


def _first_true(predicate: Callable[[int], bool], last: int) -> int:
    """The smallest number in ``[0, last]`` that satisfies a monotone predicate, which ``last`` satisfies."""
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if predicate(middle) else (middle + 1, high)
    return low


def _refuse_programs(model: Model) -> None:
    if model.quantized:
        raise StageError("the model is quantized already", where="prune", fix="list prune before quantize")
    if isinstance(model.module, GraphModule):
        raise StageError(
            "a torch.export program (.pt2) cannot be pruned: its graph holds the sizes of every layer as constants",
            where="prune",
            fix="give the model as factory and weights, or leave prune out",
        )


def _widths(before: nn.Module, after: nn.Module) -> list[dict[str, Any]]:
    """Output channels of every layer that has some, before and after; 0 where its block is gone."""
    counts = [
        {name: _output_channels(part) for name, part in module.named_modules() if isinstance(part, PRUNABLE)}
        for module in (before, after)
    ]
    return [{"layer": name, "before": width, "after": counts[1].get(name, 0)} for name, width in counts[0].items()]


def _output_channels(layer: nn.Module) -> int:
    for name in ("out_channels", "out_features", "hidden_size"):
        if hasattr(layer, name):
            return int(getattr(layer, name))
    raise TypeError(type(layer).__name__)


def _heads(before: nn.Module, after: nn.Module, taken: list[Step]) -> list[dict[str, Any]]:
    """Attention heads before and after, per attention module that lost some."""
    counts = dict.fromkeys(count for step in taken for count in step.group.counts)
    return [
        {
            "module": module,
            "before": getattr(before.get_submodule(module), attribute),
            "after": getattr(after.get_submodule(module), attribute),
        }
        for module, attribute in counts
    ]
