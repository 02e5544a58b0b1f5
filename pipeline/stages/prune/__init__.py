"""Structured pruning: whole channels leave the network until it meets its budgets, so every later file is smaller.

1. Every set of coupled channels is cut into steps of ``round_to`` channels, the least important channels first.
2. All steps of the network are put in one order: by the importance of what they remove, or by how far they move the
   outputs for what they save.
3. The shortest beginning of that order that meets every budget is found by bisection. Each trial prunes a copy and
   counts or times what is left, so a cost is that of the real network, not a formula's.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import GraphModule

from pipeline.core import ModelArtifact, SkippedLayer, StageError, StageRecord
from pipeline.data import SampleSet
from pipeline.program import count_macs, count_parameters
from pipeline.recipe import PruneConfig
from pipeline.stages.prune.budget import Budget, budgets_of
from pipeline.stages.prune.channels import (
    PRUNABLE,
    CoupledChannels,
    Step,
    coupled_channels,
    pruning_order,
    remove,
    runnable,
    still_runs,
    traceable_copy,
)
from pipeline.stages.prune.importance import scorer
from pipeline.stages.prune.sensitivity import Curve, damages, sensitivity
from pipeline.target import Target


def prune(
    artifact: ModelArtifact,
    config: PruneConfig,
    data: SampleSet | None = None,
    *,
    target: Target | None = None,
    seed: int = 0,  # noqa: ARG001  every stage takes one; nothing here is random
) -> ModelArtifact:
    """Remove channels until every budget of ``config`` is met.

    Budgets are shares of the *original*, so a recipe may prune a little, distill, and prune on.

    Args:
        data: Samples that importance ``taylor`` and ``activation`` and allocation ``sensitivity`` are measured on.
        target: Where latency is measured, if that is a budget.

    Raises:
        StageError: The model is a program rather than a module, cannot be traced, or cannot get that small.
    """
    started = time.monotonic()
    _refuse_programs(artifact)
    budgets = budgets_of(artifact, config, target)
    groups, skipped = _removable(artifact, config, data)
    order = pruning_order(groups, config.max_layer_ratio)
    curves: list[Curve] = []
    if config.allocation == "sensitivity":
        curves = _sensitivity(artifact, config, groups, data, budgets)
        order = _by_damage(order, curves)

    def pruned(count: int) -> nn.Module:
        return remove(artifact.module, artifact.inputs, order[:count])

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
            fix="raise the budget or max_layer_ratio, or lower round_to",
        )
    count = _first_true(fits, len(order))
    module = pruned(count)
    record = StageRecord(
        stage="prune",
        config=config.model_dump(mode="json"),
        duration_s=time.monotonic() - started,
        parameters=count_parameters(module),
        macs=count_macs(module, artifact.inputs),
        skipped=skipped,
        details={
            "budgets": {budget.name: {"asked": budget.share, "reached": budget.kept(module)} for budget in budgets},
            "layers": _widths(artifact.module, module),
            "heads": _heads(order[:count]),
            "sensitivity": [curve.model_dump(mode="json") for curve in curves],
        },
    )
    return artifact.after(module, record)


def _removable(
    artifact: ModelArtifact, config: PruneConfig, data: SampleSet | None
) -> tuple[list[CoupledChannels], tuple[SkippedLayer, ...]]:
    """The channels that may go. Where the network breaks without all of them, each group is tried on its own."""
    judged = traceable_copy(artifact.module)
    groups, skipped = coupled_channels(
        judged,
        artifact.inputs,
        scorer(config.importance, judged, data),
        round_to=config.round_to,
        max_layer_ratio=config.max_layer_ratio,
        skip=config.skip,
    )
    everything = pruning_order(groups, config.max_layer_ratio)
    if still_runs(artifact.module, lambda: remove(artifact.module, artifact.inputs, everything), artifact.inputs):
        return groups, skipped
    groups, broken = runnable(artifact.module, artifact.inputs, groups, config.max_layer_ratio)
    return groups, skipped + broken


def _sensitivity(
    artifact: ModelArtifact,
    config: PruneConfig,
    groups: list[CoupledChannels],
    data: SampleSet | None,
    budgets: tuple[Budget, ...],
) -> list[Curve]:
    if data is None:
        raise StageError("allocation 'sensitivity' needs samples", where="prune", fix="name data.calibration")

    def kept_share(module: nn.Module) -> float:
        return sum(budget.kept(module) for budget in budgets) / len(budgets)

    return sensitivity(artifact.module, artifact.inputs, groups, config.max_layer_ratio, data, kept_share)


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


def _refuse_programs(artifact: ModelArtifact) -> None:
    if artifact.quantized:
        raise StageError("the model is quantized already", where="prune", fix="list prune before quantize")
    if isinstance(artifact.module, GraphModule):
        raise StageError(
            "a torch.export program (.pt2) cannot be pruned: its graph holds the sizes of every layer as constants",
            where="prune",
            fix="give the model as factory and weights, or leave prune out",
        )


def _widths(before: nn.Module, after: nn.Module) -> list[dict[str, Any]]:
    """Output channels of every layer that has some, before and after."""
    counts = [
        {name: _output_channels(part) for name, part in module.named_modules() if isinstance(part, PRUNABLE)}
        for module in (before, after)
    ]
    return [{"layer": name, "before": width, "after": counts[1][name]} for name, width in counts[0].items()]


def _output_channels(layer: nn.Module) -> int:
    for name in ("out_channels", "out_features", "hidden_size"):
        if hasattr(layer, name):
            return int(getattr(layer, name))
    raise TypeError(type(layer).__name__)


def _heads(taken: list[Step]) -> list[dict[str, Any]]:
    """Attention heads before and after, per attention module that lost some."""
    lost: dict[str, tuple[int, int]] = {}
    for step in taken:
        for module, _ in step.group.counts:
            before, after = lost.get(module, (len(step.group.units),) * 2)
            lost[module] = before, after - step.units
    return [{"module": module, "before": before, "after": after} for module, (before, after) in lost.items()]
