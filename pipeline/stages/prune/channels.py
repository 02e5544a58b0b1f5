"""Which channels can be removed, together with which others, and their physical removal.

torch-pruning's dependency graph (https://arxiv.org/abs/2301.12900) finds channels that can only be removed together:
those of a residual sum, a depthwise convolution, a concatenation, an attention head.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from pipeline.core import SkippedLayer, StageError
from pipeline.core.outputs import output_tuple
from pipeline.models.capture import Examples, example_inputs
from pipeline.stages.prune import recurrent

Conv = nn.modules.conv._ConvNd
PRUNABLE = (Conv, nn.Linear, *recurrent.RECURRENT)
HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "heads")
"""Attributes by which attention modules call their number of heads (torch, timm, transformers)."""

Score = Callable[[Any], Tensor | None]
"""One importance per channel of a torch-pruning group, or None where it has no weights to judge by."""


@dataclass(frozen=True, slots=True)
class CoupledChannels:
    """Channels of one or more layers that can only be removed together.

    Attributes:
        layer: The layer that the dependency graph starts from.
        units: What can be removed: one channel; the same position in every block of a grouped convolution; a head.
        importance: ``(len(units),)``; units with small values go first.
        kind: What a unit is: ``channels`` or ``heads``.
        multiple: Kept units must be a multiple of this.
        counts: Attributes that count units, as ``(module, attribute)``: an attention module's number of heads.
    """

    layer: str
    units: tuple[tuple[int, ...], ...]
    importance: Tensor
    kind: str = "channels"
    multiple: int = 1
    counts: tuple[tuple[str, str], ...] = ()

    def step_sizes(self, max_layer_ratio: float) -> list[int]:
        """How many units each step removes, so that what stays is always a multiple of ``multiple``.

        >>> units = tuple((channel,) for channel in range(36))
        >>> CoupledChannels("conv", units, torch.ones(36), multiple=8).step_sizes(0.9)
        [4, 8, 8, 8]
        """
        least = max(self.multiple, math.ceil(len(self.units) * (1 - max_layer_ratio)))
        sizes = []
        kept = len(self.units)
        while kept - (size := kept % self.multiple or self.multiple) >= least:
            sizes.append(size)
            kept -= size
        return sizes


@dataclass(frozen=True, slots=True)
class Step:
    """The next units to remove from a layer, and the estimated damage.

    Attributes:
        damage: Importance of what is removed; the steps of a network are ordered by it.
    """

    group: CoupledChannels
    channels: tuple[int, ...]
    units: int
    damage: float


def coupled_channels(
    module: nn.Module,
    inputs: Examples,
    score: Score,
    *,
    round_to: int,
    max_layer_ratio: float,
    skip: Sequence[str] = (),
) -> tuple[list[CoupledChannels], tuple[SkippedLayer, ...]]:
    """All sets of channels that may be removed from ``module``, and the layers that must stay, with the reason.

    Args:
        module: A copy that requires gradients, as from `traceable_copy`; it is not changed.
        score: Judges a group of ``module``'s channels.
        skip: Names of modules to leave alone, with all they contain.
    """
    graph = dependency_graph(module, inputs)
    names = {part: name for name, part in module.named_modules()}
    groups: list[CoupledChannels] = []
    reasons: dict[str, str] = {}
    seen: set[str] = set()
    for root in [part for part in graph.module2node if isinstance(part, PRUNABLE)]:
        if names[root] in seen:
            continue
        if getattr(root, "proj_size", 0):
            reasons[names[root]] = "its hidden state is projected (proj_size)"
            continue
        try:
            channels = list(range(graph.get_out_channels(root)))
            group = graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, channels)
        except Exception as error:  # torch-pruning's index mappings fail in any way on operators they do not know
            reasons[names[root]] = f"the dependency graph cannot follow its channels: {type(error).__name__}: {error}"
            continue
        widened = [dep.target for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
        layers = [names[node.module] for node in widened if isinstance(node.module, PRUNABLE)]
        touched = [names[dep.target.module] for dep, _ in group if dep.target.module in names]
        seen.update(layers)
        named = [name for name in touched if is_within(name, skip)]
        if any(not node.outputs for node in widened):
            reasons.update(dict.fromkeys(layers, "its channels are the model's output"))
        elif named:
            coupled = f"its channels are coupled with {named[0]}, which is named in skip"
            reasons.update({layer: "named in skip" if layer in named else coupled for layer in layers})
        elif (scores := score(group)) is None:
            reasons.update(dict.fromkeys(layers, "it has no weights to judge by"))
        else:
            found = _units(module, names[root], layers, scores, _blocks(graph, group), round_to)
            if found.step_sizes(max_layer_ratio):
                groups.append(found)
            else:
                reason = f"{len(found.units)} {found.kind} cannot lose any and stay a multiple of {found.multiple}"
                reasons.update(dict.fromkeys(layers, reason))
    for name, part in module.named_modules():
        if isinstance(part, PRUNABLE) and name not in seen and name not in reasons:
            reasons[name] = "the dependency graph does not reach it"
    return groups, tuple(SkippedLayer(layer=name, reason=reason) for name, reason in reasons.items())


def _units(
    module: nn.Module, root: str, layers: Sequence[str], scores: Tensor, blocks: int, round_to: int
) -> CoupledChannels:
    """Cut a group's channels into what can be removed on its own."""
    width = len(scores)
    heads = _heads(module, layers, width)
    if heads is not None:
        owner, attribute, count = heads
        rows = torch.arange(width).view(count, -1)
        return CoupledChannels(
            root,
            tuple(map(tuple, rows.tolist())),
            scores.view(count, -1).mean(1),
            kind="heads",
            counts=((owner, attribute),),
        )
    rows = torch.arange(width).view(blocks, -1).T
    return CoupledChannels(
        root,
        tuple(map(tuple, rows.tolist())),
        scores.view(blocks, -1).mean(0),
        multiple=math.lcm(round_to, blocks) // blocks,
    )


def _heads(module: nn.Module, layers: Sequence[str], width: int) -> tuple[str, str, int] | None:
    """The attention module whose queries, keys and values these layers are: its name, attribute and head count."""
    if len(layers) < 3 or not all(isinstance(module.get_submodule(name), nn.Linear) for name in layers):
        return None
    owners = {name.rpartition(".")[0] for name in layers}
    for owner in owners if len(owners) == 1 else ():
        for attribute in HEAD_COUNTS:
            count = getattr(module.get_submodule(owner), attribute, None)
            if isinstance(count, int) and count > 1 and width % count == 0:
                return owner, attribute, count
    return None


def runnable(
    module: nn.Module, inputs: Examples, groups: Sequence[CoupledChannels], max_layer_ratio: float
) -> tuple[list[CoupledChannels], tuple[SkippedLayer, ...]]:
    """The groups that can be pruned so that the network still runs and keeps its output shapes, each tried alone."""
    expected = _output_shapes(module, inputs)
    kept, skipped = [], []
    for group in groups:
        steps = steps_of(group, max_layer_ratio)
        try:
            shapes = _output_shapes(remove(module, inputs, steps), inputs)
        except Exception as error:  # a forward of the user's, on layers of sizes it did not expect
            reason = f"without some of its {group.kind} the model does not run: {error}"
        else:
            if shapes == expected:
                kept.append(group)
                continue
            reason = f"without some of its {group.kind} the outputs change from {expected} to {shapes}"
        skipped.append(SkippedLayer(layer=group.layer, reason=" ".join(reason.split())))
    return kept, tuple(skipped)


def still_runs(module: nn.Module, pruned: Callable[[], nn.Module], inputs: Examples) -> bool:
    """Whether a pruned module runs and gives outputs of the same shapes."""
    try:
        return _output_shapes(pruned(), inputs) == _output_shapes(module, inputs)
    except Exception:  # the caller finds out which group causes it
        return False


def steps_of(group: CoupledChannels, max_layer_ratio: float) -> list[Step]:
    """A group's units in steps, the least important first."""
    ranked = group.importance.argsort(stable=True).tolist()
    steps, start = [], 0
    for size in group.step_sizes(max_layer_ratio):
        units = ranked[start : start + size]
        channels = tuple(sorted(channel for unit in units for channel in group.units[unit]))
        steps.append(Step(group, channels, size, float(group.importance[units].mean())))
        start += size
    return steps


def pruning_order(groups: Sequence[CoupledChannels], max_layer_ratio: float) -> list[Step]:
    """All steps of a network, the least important first; the steps of one group stay in their order."""
    steps = [step for group in groups for step in steps_of(group, max_layer_ratio)]
    return sorted(steps, key=lambda step: step.damage)


def remove(module: nn.Module, inputs: Examples, steps: Sequence[Step]) -> nn.Module:
    """A copy of ``module`` without the channels of ``steps``, in eval mode."""
    flags = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    module = traceable_copy(module)
    channels: dict[str, list[int]] = {}
    counts: dict[tuple[str, str], int] = {}
    for step in steps:
        channels.setdefault(step.group.layer, []).extend(step.channels)
        for count in step.group.counts:
            counts[count] = counts.get(count, 0) + step.units
    graph = dependency_graph(module, inputs)
    for layer, indices in channels.items():
        part = module.get_submodule(layer)
        graph.get_pruning_group(part, graph.get_pruner_of_module(part).prune_out_channels, sorted(indices)).prune()
    for (owner, attribute), removed in counts.items():
        _reduce_heads(module.get_submodule(owner), attribute, removed)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(flags[name])
        parameter.grad = None
    return module.eval()


def _reduce_heads(attention: nn.Module, attribute: str, removed: int) -> None:
    """Set an attention module's number of heads, and with it the widths that it keeps of all heads together."""
    before = getattr(attention, attribute)
    after = before - removed
    for name, value in list(vars(attention).items()):
        if name == attribute or (name in HEAD_COUNTS and value == before):
            setattr(attention, name, after)
        elif name in ("all_head_size", "inner_dim") and isinstance(value, int):
            setattr(attention, name, value // before * after)


def traceable_copy(module: nn.Module) -> nn.Module:
    """A copy whose parameters all require gradients: the dependency graph is derived from autograd's."""
    return copy.deepcopy(module).requires_grad_(True)


def dependency_graph(module: nn.Module, inputs: Examples) -> Any:
    """torch-pruning's graph of a `traceable_copy`.

    Raises:
        StageError: The network cannot be traced.
    """
    try:
        with torch.enable_grad(), recurrent.traced_as_one_node(module):
            return tp.DependencyGraph().build_dependency(
                module, example_inputs(inputs), customized_pruners=recurrent.PRUNERS, verbose=False
            )
    except Exception as error:  # torch-pruning fails with whatever its tracing meets
        raise StageError(
            f"the dependency graph cannot be traced: {type(error).__name__}: {error}",
            where=f"prune {type(module).__name__}",
            fix="leave prune out for this model",
        ) from error


def _blocks(graph: Any, group: Any) -> int:
    """How many equal parts a group's channels form: the largest count among its grouped layers."""
    counts = [1]
    for dep, _ in group:
        part = dep.target.module
        pruner = graph.get_pruner_of_module(part)
        if pruner is None or (isinstance(part, Conv) and part.groups == part.out_channels):
            continue
        widens = graph.is_out_channel_pruning_fn(dep.handler)
        counts.append(pruner.get_out_channel_groups(part) if widens else pruner.get_in_channel_groups(part))
    return max(counts)


def is_within(name: str, containers: Sequence[str]) -> bool:
    """Whether a module is one of these, or inside one."""
    return any(name == container or name.startswith(f"{container}.") for container in containers)


def _output_shapes(module: nn.Module, inputs: Examples) -> list[list[int]]:
    with torch.no_grad():
        result = module(*example_inputs(inputs))
    return [list(tensor.shape) for tensor in output_tuple(result)]
