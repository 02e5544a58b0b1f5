"""One round of channel pruning: which channels to remove, so that the network meets every cost limit.

1. Every set of coupled channels is cut into steps of ``round_to`` channels, the least important channels first.
2. All steps of the network are put in one order: by the importance of what they remove, or by how much they change the
   outputs for what they save.
3. Bisection finds the shortest beginning of that order that meets every limit. Each trial prunes a copy and counts or
   times what is left, so a cost is that of the real network, not of a formula.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from pipeline.core import Model, SkippedLayer, StageError
from pipeline.data.samples import SampleSet
from pipeline.models.digest import key_of, weights_sha256
from pipeline.models.duplicate import copy_module
from pipeline.recipe import PruneConfig
from pipeline.stages.prune.channels import (
    CoupledChannels,
    Step,
    coupled_channels,
    pruning_order,
    remove,
    steps_of,
    traceable_copy,
)
from pipeline.stages.prune.coupling import READINGS
from pipeline.stages.prune.guard import Guard
from pipeline.stages.prune.importance import scorer
from pipeline.stages.prune.limits import CostLimit
from pipeline.stages.prune.sensitivity import Curve, damages, sensitivity
from pipeline.tasks.task import Task

logger = logging.getLogger(__name__)

_measured: dict[str, list[Curve]] = {}
"""Sensitivities that this process has measured: a search asks for the same ones under many budgets."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A module without some of its channels, and how they were chosen.

    Attributes:
        steps: What was removed, in that order.
        skipped: Layers that had to stay as they were.
        curves: Measured sensitivities; empty where channels are removed by importance alone.
    """

    module: nn.Module
    steps: list[Step]
    skipped: tuple[SkippedLayer, ...]
    curves: list[Curve]


def remove_channels(
    model: Model,
    config: PruneConfig,
    data: SampleSet | None,
    task: Task | None,
    limits: tuple[CostLimit, ...],
    widths: Mapping[str, int] = MappingProxyType({}),
) -> Selection:
    """Remove the shortest beginning of the pruning order that meets every limit.

    Args:
        widths: Output channels of layers before the first round.

    Raises:
        StageError: With everything removed that may be, a limit is still not met; or the network cannot be traced.
    """
    if not limits:
        return Selection(copy_module(model.module), [], (), [])
    guard = Guard(model.module, model.examples or model.inputs)
    groups, skipped = _removable(model, config, data, task, guard, widths)
    while True:
        try:
            selection = _select(model, config, data, task, limits, groups, skipped)
        except _NotRunError as error:
            faulty, reasons = guard.faulty_groups(error.steps)
            if not faulty:
                raise error.cause from None
        else:
            faulty, reasons = guard.faulty_groups(selection.steps)
            if not faulty:
                return selection
        groups = [group for group in groups if all(group is not other for other in faulty)]
        skipped += reasons


class _NotRunError(Exception):
    """What is left cannot be counted or timed, most often because it does not run."""

    def __init__(self, steps: list[Step], cause: Exception) -> None:
        super().__init__(str(cause))
        self.steps, self.cause = steps, cause


def _select(
    model: Model,
    config: PruneConfig,
    data: SampleSet | None,
    task: Task | None,
    limits: tuple[CostLimit, ...],
    groups: list[CoupledChannels],
    skipped: tuple[SkippedLayer, ...],
) -> Selection:
    order = pruning_order(groups, config.max_layer_ratio)
    curves: list[Curve] = []
    if config.allocation == "sensitivity":
        curves = _sensitivity(model, config, groups, data, task, limits)
        order = _by_damage(order, curves)

    def pruned(count: int) -> nn.Module:
        return remove(model.module, order[:count])

    def fits(count: int) -> bool:
        module = pruned(count)
        try:
            return all(limit.is_met(module) for limit in limits)
        except Exception as error:
            raise _NotRunError(order[:count], error) from error

    if not fits(len(order)):
        raise _unreachable(pruned(len(order)), limits, skipped)
    count = _first_true(fits, len(order))
    _log_selection(order, count, skipped)
    return Selection(pruned(count), order[:count], skipped, curves)


def _unreachable(least: nn.Module, limits: tuple[CostLimit, ...], skipped: tuple[SkippedLayer, ...]) -> StageError:
    kept = ", ".join(f"{limit.name} is {limit.kept(least):.3f}, not {limit.share:.3f}" for limit in limits)
    left = "; ".join(f"{layer.layer}: {layer.reason}" for layer in skipped)
    return StageError(
        f"the budget cannot be reached: with everything removed that may be, {kept} (left alone: {left})",
        where="prune",
        fix="raise the budget or max_layer_ratio, lower round_to, or remove whole blocks (blocks_ratio)",
    )


def _log_selection(order: list[Step], count: int, skipped: tuple[SkippedLayer, ...]) -> None:
    if not logger.isEnabledFor(logging.DEBUG):
        return
    logger.debug("%d of %d steps are enough", count, len(order))
    layers = dict.fromkeys(_layer(step) for step in order)
    for layer in layers:
        removed = sum(step.units for step in order[:count] if _layer(step) == layer)
        (group,) = {id(step.group): step.group for step in order if _layer(step) == layer}.values()
        logger.debug("%s: %d of %d %s removed", layer, removed, len(group.units), group.kind)
    for entry in skipped:
        logger.debug("%s left as it is: %s", entry.layer, entry.reason)


def _removable(
    model: Model,
    config: PruneConfig,
    data: SampleSet | None,
    task: Task | None,
    guard: Guard,
    widths: Mapping[str, int],
) -> tuple[list[CoupledChannels], tuple[SkippedLayer, ...]]:
    """The channels that may go, as the guard has found; where it rejects some, other readings of the code are tried."""
    judged = traceable_copy(model.module)
    score = scorer(config.importance, judged, data, task)
    kept: list[CoupledChannels] = []
    skipped: dict[str, SkippedLayer] = {}
    rejected: set[str] | None = None
    for reading in READINGS:
        groups, alone = coupled_channels(
            model.module,
            model.examples or model.inputs,
            score,
            round_to=config.round_to,
            max_layer_ratio=config.max_layer_ratio,
            skip=config.skip,
            reading=reading,
            widths=widths,
        )
        if rejected is not None:
            groups = [group for group in groups if set(group.layers) <= rejected]
        found, broken = guard.verified(groups, config.max_layer_ratio, beside=kept)
        kept += found
        for layer in (*alone, *broken):
            skipped.setdefault(layer.layer, layer)
        free = {layer for group in kept for layer in group.layers}
        rejected = {layer.layer for layer in broken} - free if rejected is None else rejected - free
        if not rejected:
            break
    return kept, tuple(layer for name, layer in skipped.items() if name not in free)


def _sensitivity(
    model: Model,
    config: PruneConfig,
    groups: list[CoupledChannels],
    data: SampleSet | None,
    task: Task | None,
    limits: tuple[CostLimit, ...],
) -> list[Curve]:
    if data is None or task is None:
        raise StageError("allocation 'sensitivity' needs samples", where="prune", fix="name data.calibration")

    def kept_share(module: nn.Module) -> float:
        return sum(limit.kept(module) for limit in limits) / len(limits)

    key = key_of(
        model=weights_sha256(model.module),
        original=weights_sha256(model.reference),
        data=data.sha256,
        task=task.name,
        costs=[limit.name for limit in limits],
        order=[
            (step.group.name, step.channels) for group in groups for step in steps_of(group, config.max_layer_ratio)
        ],
    )
    logger.debug("sensitivities %s", "known" if key in _measured else "measured")
    if key not in _measured:
        _measured[key] = sensitivity(model.module, groups, config.max_layer_ratio, data, task, kept_share)
    return _measured[key]


def _by_damage(order: list[Step], curves: list[Curve]) -> list[Step]:
    """Steps ordered by what they cost for what they save; the steps of one group stay in their order."""
    of_layer = {curve.layer: curve for curve in curves}
    ranked = []
    for layer, steps in itertools.groupby(sorted(order, key=_layer), _layer):
        own = list(steps)
        ranked += list(zip(damages(of_layer[layer], len(own)), own, strict=True))
    return [step for _, step in sorted(ranked, key=lambda pair: pair[0])]


def _layer(step: Step) -> str:
    return step.group.name


def _first_true(predicate: Callable[[int], bool], last: int) -> int:
    """The smallest number in ``[0, last]`` that satisfies a monotone predicate, which ``last`` satisfies."""
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if predicate(middle) else (middle + 1, high)
    return low
