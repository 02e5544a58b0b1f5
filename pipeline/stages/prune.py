"""Structured pruning: whole channels leave the network until it meets its budget, so every later file is smaller.

Channels that must leave together (a residual sum, a depthwise convolution, a concatenation) are found by
torch-pruning's dependency graph (https://arxiv.org/abs/2301.12900). Then, in three moves:

1. every such set of coupled channels is cut into steps of ``round_to`` channels, the least important channels first;
2. all steps of the network are put in one order, by the importance of what they remove;
3. the shortest beginning of that order that meets every budget is found by bisection. Each trial prunes a copy and
   counts what is left, so the cost is that of the real network, not a formula's.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.fx import GraphModule

from pipeline.core import ModelArtifact, SkippedLayer, StageError, StageRecord, TensorSpec
from pipeline.data import SampleSet
from pipeline.program import count_macs, count_parameters, example_inputs
from pipeline.recipe import PruneConfig

_PRUNABLE = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True, slots=True)
class CoupledChannels:
    """Channels of one or more layers that can only be removed together.

    Attributes:
        layer: The layer that the dependency graph starts from.
        width: Channels of that layer.
        blocks: Equal parts of a grouped convolution; each must lose the same positions.
        importance: ``(width // blocks,)``, one value per position; the network's mean is near 1.
    """

    layer: str
    width: int
    blocks: int
    importance: Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """The next channels that a layer gives up, and how important they are."""

    layer: str
    channels: tuple[int, ...]
    importance: float


def prune(
    artifact: ModelArtifact,
    config: PruneConfig,
    data: SampleSet | None = None,  # noqa: ARG001  magnitudes need none
    *,
    seed: int = 0,  # noqa: ARG001  and nothing here is random
) -> ModelArtifact:
    """Remove channels until every budget of ``config`` is met.

    Raises:
        StageError: The model is a program rather than a module, cannot be traced, or cannot get that small.
    """
    started = time.monotonic()
    _refuse_programs(artifact)
    groups, skipped = coupled_channels(artifact.module, artifact.inputs, config)
    steps = pruning_order(groups, config.round_to, config.max_layer_ratio)
    budgets = _budgets(artifact, config)

    def pruned(count: int) -> nn.Module:
        return remove(artifact.module, artifact.inputs, steps[:count])

    def reached(count: int) -> dict[str, float]:
        module = pruned(count)
        return {name: budget.cost(module) / budget.whole for name, budget in budgets.items()}

    def fits(count: int) -> bool:
        shares = reached(count)
        return all(shares[name] <= budget.share for name, budget in budgets.items())

    if not fits(len(steps)):
        least = reached(len(steps))
        raise StageError(
            "the budget cannot be reached: with everything removed that may be, "
            + ", ".join(f"{name} is {least[name]:.3f}, not {budget.share}" for name, budget in budgets.items()),
            where="prune",
            fix="raise the ratio or max_layer_ratio, or lower round_to",
        )
    count = _first_true(fits, len(steps))
    module = pruned(count)
    _check_outputs(artifact, module)
    shares = reached(count)
    record = StageRecord(
        stage="prune",
        config=config.model_dump(mode="json"),
        duration_s=time.monotonic() - started,
        parameters=count_parameters(module),
        macs=count_macs(module, artifact.inputs),
        skipped=skipped,
        details={
            "budgets": {name: {"asked": budget.share, "reached": shares[name]} for name, budget in budgets.items()},
            "layers": _widths(artifact.module, module),
        },
    )
    return artifact.after(module, record)


def coupled_channels(
    module: nn.Module, inputs: tuple[TensorSpec, ...], config: PruneConfig
) -> tuple[list[CoupledChannels], tuple[SkippedLayer, ...]]:
    """All sets of channels that may be removed, and the layers that must stay, with the reason."""
    module = _trainable_copy(module)
    graph = _dependency_graph(module, inputs)
    importance = tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean", normalizer="mean")
    names = {part: name for name, part in module.named_modules()}
    groups: list[CoupledChannels] = []
    reasons: dict[str, str] = {}
    seen = set()
    for group in graph.get_all_groups(root_module_types=_PRUNABLE):
        widened = [dep.target for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
        layers = [names[node.module] for node in widened if isinstance(node.module, _PRUNABLE)]
        touched = [names[dep.target.module] for dep, _ in group if dep.target.module in names]
        seen.update(layers)
        root = group[0].dep.target.module
        width, blocks = graph.get_out_channels(root), _blocks(graph, group)
        named = [name for name in touched if _is_within(name, config.skip)]
        if any(not node.outputs for node in widened):
            reasons.update(dict.fromkeys(layers, "its channels are the model's output"))
        elif named:
            coupled = f"its channels are coupled with {named[0]}, which is named in skip"
            reasons.update({layer: "named in skip" if layer in named else coupled for layer in layers})
        elif not _step_sizes(width // blocks, blocks, config.round_to, config.max_layer_ratio):
            reason = f"{width} channels cannot lose any and stay a multiple of {config.round_to}"
            reasons.update(dict.fromkeys(layers, reason))
        else:
            positions = importance(group).view(blocks, -1).mean(0)
            groups.append(CoupledChannels(names[root], width, blocks, positions))
    for name, part in module.named_modules():
        if isinstance(part, _PRUNABLE) and name not in seen:
            reasons[name] = "the dependency graph does not reach it"
    return groups, tuple(SkippedLayer(layer=name, reason=reason) for name, reason in reasons.items())


def pruning_order(groups: Sequence[CoupledChannels], round_to: int, max_layer_ratio: float) -> list[Step]:
    """All steps of a network, the least important first; the steps of one layer stay in their order."""
    steps = []
    for group in groups:
        per_block = group.width // group.blocks
        ranked = group.importance.argsort(stable=True).tolist()
        start = 0
        for size in _step_sizes(per_block, group.blocks, round_to, max_layer_ratio):
            positions = ranked[start : start + size]
            channels = [block * per_block + position for block in range(group.blocks) for position in positions]
            score = float(group.importance[positions].mean())
            steps.append(Step(group.layer, tuple(sorted(channels)), score))
            start += size
    return sorted(steps, key=lambda step: step.importance)


def _step_sizes(per_block: int, blocks: int, round_to: int, max_layer_ratio: float) -> list[int]:
    """Positions that each step removes, so that what stays is a multiple of ``round_to`` channels.

    >>> _step_sizes(36, 1, 8, 0.9)
    [4, 8, 8, 8]
    """
    unit = math.lcm(round_to, blocks) // blocks
    least = max(unit, math.ceil(per_block * (1 - max_layer_ratio)))
    sizes = []
    kept = per_block
    while kept - (size := kept % unit or unit) >= least:
        sizes.append(size)
        kept -= size
    return sizes


def remove(module: nn.Module, inputs: tuple[TensorSpec, ...], steps: Sequence[Step]) -> nn.Module:
    """A copy of ``module`` without the channels of ``steps``, in eval mode."""
    flags = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    module = _trainable_copy(module)
    channels: dict[str, list[int]] = {}
    for step in steps:
        channels.setdefault(step.layer, []).extend(step.channels)
    graph = _dependency_graph(module, inputs)
    for layer, indices in channels.items():
        part = module.get_submodule(layer)
        graph.get_pruning_group(part, graph.get_pruner_of_module(part).prune_out_channels, sorted(indices)).prune()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(flags[name])
        parameter.grad = None
    return module.eval()


@dataclass(frozen=True, slots=True)
class _Budget:
    """The share of a cost that may stay, and how that cost is measured."""

    share: float
    cost: Callable[[nn.Module], float]
    whole: float


def _budgets(artifact: ModelArtifact, config: PruneConfig) -> dict[str, _Budget]:
    costs: dict[str, tuple[float | None, Callable[[nn.Module], float]]] = {
        "macs_ratio": (config.macs_ratio, lambda module: count_macs(module, artifact.inputs)),
        "parameters_ratio": (config.parameters_ratio, count_parameters),
    }
    return {
        name: _Budget(share, cost, cost(artifact.module)) for name, (share, cost) in costs.items() if share is not None
    }


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


def _trainable_copy(module: nn.Module) -> nn.Module:
    """A copy whose parameters all require gradients: the dependency graph is read off autograd's."""
    return copy.deepcopy(module).requires_grad_(True)


def _dependency_graph(module: nn.Module, inputs: tuple[TensorSpec, ...]) -> Any:
    try:
        with torch.enable_grad():
            return tp.DependencyGraph().build_dependency(module, example_inputs(inputs), verbose=False)
    except Exception as error:  # torch-pruning fails with whatever its tracing meets
        raise StageError(
            f"the dependency graph cannot be traced: {type(error).__name__}: {error}",
            where=f"prune {type(module).__name__}",
            fix="leave prune out for this model",
        ) from error


def _blocks(graph: Any, group: Any) -> int:
    """Into how many equal parts a group's channels fall: the largest count among its grouped layers."""
    counts = [1]
    for dep, _ in group:
        part = dep.target.module
        pruner = graph.get_pruner_of_module(part)
        if pruner is None or (isinstance(part, nn.modules.conv._ConvNd) and part.groups == part.out_channels):
            continue
        widens = graph.is_out_channel_pruning_fn(dep.handler)
        counts.append(pruner.get_out_channel_groups(part) if widens else pruner.get_in_channel_groups(part))
    return max(counts)


def _is_within(name: str, containers: Sequence[str]) -> bool:
    return any(name == container or name.startswith(f"{container}.") for container in containers)


def _check_outputs(artifact: ModelArtifact, module: nn.Module) -> None:
    """The pruned model runs, and its outputs kept their shapes."""
    try:
        shapes = [list(_shapes(part, artifact.inputs)) for part in (artifact.module, module)]
    except Exception as error:  # a forward of the user's, on layers of sizes it did not expect
        raise StageError(
            f"the pruned model does not run: {error}", where="prune", fix="list the layers to leave alone in skip"
        ) from error
    if shapes[0] != shapes[1]:
        raise StageError(f"pruning changed the outputs from {shapes[0]} to {shapes[1]}", where="prune")


def _shapes(module: nn.Module, inputs: tuple[TensorSpec, ...]) -> Iterator[tuple[int, ...]]:
    with torch.no_grad():
        result = module(*example_inputs(inputs))
    for tensor in result if isinstance(result, tuple | list) else (result,):
        yield tuple(tensor.shape)


def _widths(before: nn.Module, after: nn.Module) -> list[dict[str, Any]]:
    """Output channels of every convolution and linear layer, before and after."""
    counts = [
        {name: _output_channels(part) for name, part in module.named_modules() if isinstance(part, _PRUNABLE)}
        for module in (before, after)
    ]
    return [{"layer": name, "before": width, "after": counts[1][name]} for name, width in counts[0].items()]


def _output_channels(layer: nn.modules.conv._ConvNd | nn.Linear) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
