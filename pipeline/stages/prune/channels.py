"""Which channels can be removed, their importance, and their physical removal.

`coupling` finds the sets of channels that leave together; here they become groups of units that can stand for each
other, cut into steps that keep every layer a multiple of ``round_to``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from pipeline.core import SkippedLayer
from pipeline.models.capture import Examples
from pipeline.models.duplicate import copy_module
from pipeline.models.layers import is_within
from pipeline.stages.prune.coupling import (
    HEAD_COUNTS,
    PRUNABLE,
    READINGS,
    Coupling,
    Reading,
    Size,
    Together,
    couple,
)

Score = Callable[[Sequence[Together], Sequence[int]], Tensor | None]
"""One importance per unit, given with the number of its channels; None where there are no weights to judge by."""


@dataclass(frozen=True, slots=True)
class CoupledChannels:
    """Channels of one or more layers that can only be removed together.

    Attributes:
        layer: The first layer whose output channels they are.
        units: What can be removed: one channel; the same position in every block of a grouped convolution; a head.
        importance: ``(len(units),)``; units with small values go first.
        kind: What a unit is: ``channels`` or ``heads``.
        multiple: Kept units must be a multiple of this.
        counts: Attributes that count units, as ``(module, attribute)``: an attention module's number of heads.
        members: Per unit, all that leaves with it, in every layer.
        layers: Every layer whose output channels they are.
        whole: How many units there were before an earlier round; 0 where there was none.
    """

    layer: str
    units: tuple[tuple[int, ...], ...]
    importance: Tensor
    kind: str = "channels"
    multiple: int = 1
    counts: tuple[Size, ...] = ()
    members: tuple[Together, ...] = field(default=(), repr=False)
    layers: tuple[str, ...] = ()
    whole: float = 0

    @property
    def name(self) -> str:
        """The layer, with its channels where they do not start at 0: a layer may belong to several groups."""
        first = min(map(min, self.units))
        return self.layer if first == 0 else f"{self.layer}[{first}:]"

    def step_sizes(self, max_layer_ratio: float) -> list[int]:
        """How many units each step removes, so that what stays is always a multiple of ``multiple``.

        >>> units = tuple((channel,) for channel in range(36))
        >>> CoupledChannels("conv", units, torch.ones(36), multiple=8).step_sizes(0.9)
        [4, 8, 8, 8]
        """
        whole = self.whole or len(self.units)
        least = max(self.multiple, math.ceil(whole * (1 - max_layer_ratio)))
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
        members: The units themselves, with all that leaves with them.
    """

    group: CoupledChannels
    channels: tuple[int, ...]
    units: int
    damage: float
    members: tuple[Together, ...] = field(default=(), repr=False)


def coupled_channels(
    module: nn.Module,
    inputs: Examples,
    score: Score,
    *,
    round_to: int,
    max_layer_ratio: float,
    skip: Sequence[str] = (),
    reading: Reading = READINGS[0],
    widths: Mapping[str, int] = MappingProxyType({}),
) -> tuple[list[CoupledChannels], tuple[SkippedLayer, ...]]:
    """All groups of channels that may be removed from ``module``, and the layers that must stay, with the reason.

    Args:
        score: Judges the units of a group.
        skip: Names of modules to leave alone, with all they contain.
        reading: How ambiguous reshapes are read.
        widths: Output channels of layers before earlier rounds, which ``max_layer_ratio`` is a share of.
    """
    coupling = couple(module, inputs, reading)
    reasons = _kept_layers(module, coupling, skip)
    groups: list[CoupledChannels] = []
    for numbers in _groups(coupling, skip):
        group = _group(coupling, numbers, score, round_to, widths)
        if group is None:
            layers = [name for name, own in coupling.layers.items() if set(own) & set(numbers)]
            reasons.update(dict.fromkeys(layers, "it has no weights to judge by"))
        elif group.step_sizes(max_layer_ratio):
            groups.append(group)
        else:
            reason = f"{len(group.units)} {group.kind} cannot lose any and stay a multiple of {group.multiple}"
            reasons.update(dict.fromkeys(group.layers, reason))
    free = {layer for group in groups for layer in group.layers}
    return groups, tuple(SkippedLayer(layer=name, reason=why) for name, why in reasons.items() if name not in free)


def _kept_layers(module: nn.Module, coupling: Coupling, skip: Sequence[str]) -> dict[str, str]:
    """Why layers, of which at least some channels must stay, lose none of these."""
    reasons = {}
    for name, part in module.named_modules():
        if not isinstance(part, PRUNABLE):
            continue
        if name not in coupling.layers:
            reasons[name] = "the network does not call it"
            continue
        numbers = dict.fromkeys(coupling.layers[name])
        found = [why for number in numbers if (why := _reason(name, coupling, number, skip))]
        if found:
            reasons[name] = found[0]
    return reasons


def _reason(layer: str, coupling: Coupling, number: int, skip: Sequence[str]) -> str | None:
    if number == 0:
        return "it has a single channel"
    together = coupling.sets[number]
    named = [name for name in _touched(together) if is_within(name, skip)]
    if together.reason or not named:
        return together.reason
    if is_within(layer, skip):
        return "named in skip"
    return f"its channels are coupled with {named[0]}, which is named in skip"


def _touched(together: Together) -> list[str]:
    """The modules whose weights or sizes change."""
    owners = (name.rpartition(".")[0] for name, _ in together.places)
    return list(dict.fromkeys((*owners, *(name for name, _ in together.sizes))))


def _groups(coupling: Coupling, skip: Sequence[str]) -> list[list[int]]:
    """Sets that may leave, with those that can stand for each other together."""
    groups: dict[Any, list[int]] = {}
    for name, numbers in coupling.layers.items():
        for number in dict.fromkeys(numbers):
            if _reason(name, coupling, number, skip) is None:
                own = groups.setdefault(coupling.sets[number].signature(), [])
                own += [] if number in own else [number]
    return list(groups.values())


def _group(
    coupling: Coupling, numbers: Sequence[int], score: Score, round_to: int, widths: Mapping[str, int]
) -> CoupledChannels | None:
    """A group of sets; None where it has no weights to judge by."""
    wanted = set(numbers)
    layers = [name for name, own in coupling.layers.items() if wanted & set(own)]
    root = coupling.layers[layers[0]]
    units = tuple(tuple(at for at, own in enumerate(root) if own == number) for number in numbers)
    members = tuple(coupling.sets[number] for number in numbers)
    importance = score(members, [len(unit) for unit in units])
    if importance is None:
        return None
    heads = members[0].heads
    shares = {coupling.layers[name].count(numbers[0]) for name in layers}
    multiple = math.lcm(*(math.lcm(round_to, share) // share for share in shares))
    whole = len(units) * widths.get(layers[0], len(root)) / len(root)
    kind = "heads" if heads else "channels"
    return CoupledChannels(layers[0], units, importance, kind, multiple, heads, members, tuple(layers), whole)


def steps_of(group: CoupledChannels, max_layer_ratio: float) -> list[Step]:
    """A group's units in steps, the least important first."""
    ranked = group.importance.argsort(stable=True).tolist()
    steps, start = [], 0
    for size in group.step_sizes(max_layer_ratio):
        units = ranked[start : start + size]
        channels = tuple(sorted(channel for unit in units for channel in group.units[unit]))
        members = tuple(group.members[unit] for unit in units) if group.members else ()
        steps.append(Step(group, channels, size, float(group.importance[units].mean()), members))
        start += size
    return steps


def pruning_order(groups: Sequence[CoupledChannels], max_layer_ratio: float) -> list[Step]:
    """All steps of a network, the least important first; the steps of one group stay in their order."""
    steps = [step for group in groups for step in steps_of(group, max_layer_ratio)]
    return sorted(steps, key=lambda step: step.damage)


def remove(module: nn.Module, steps: Iterable[Step]) -> nn.Module:
    """A copy of ``module`` without the channels of ``steps``, in eval mode."""
    steps = list(steps)
    original, module = module, copy_module(module)
    places = gone_places(steps)
    for name, axes in places.items():
        _replace(module, name, _without(module, name, axes))
    for owner, weight, axes in computed_weights(original, places):
        _set_computed(module.get_submodule(owner), weight, original.get_submodule(owner), axes)
    for (name, attribute), gone in gone_sizes(steps).items():
        _shrink(module.get_submodule(name), attribute, len(gone))
    for parameter in module.parameters():
        parameter.grad = None
    return module.eval()


def traceable_copy(module: nn.Module) -> nn.Module:
    """A copy whose parameters all require gradients."""
    return copy_module(module).requires_grad_(True)


def gone_places(steps: Iterable[Step]) -> dict[str, dict[int, list[int]]]:
    """Positions that steps remove: per parameter or buffer, per axis."""
    found: dict[str, dict[int, list[int]]] = {}
    for together in (member for step in steps for member in step.members):
        for (name, axis), positions in together.places.items():
            found.setdefault(name, {}).setdefault(axis, []).extend(positions)
    return found


def gone_sizes(steps: Iterable[Step]) -> dict[Size, list[int]]:
    """Positions that steps remove, per size that a module keeps."""
    found: dict[Size, list[int]] = {}
    for together in (member for step in steps for member in step.members):
        for size, positions in together.sizes.items():
            found.setdefault(size, []).extend(positions)
    return found


def _without(module: nn.Module, name: str, gone: Mapping[int, Sequence[int]]) -> Tensor:
    """A parameter or buffer without some positions of some axes."""
    owner, _, attribute = name.rpartition(".")
    tensor = getattr(module.get_submodule(owner), attribute)
    values = tensor.detach()
    for axis, positions in gone.items():
        values = values.index_select(axis, _others(values.shape[axis], positions))
    return nn.Parameter(values, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def _replace(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of another, under every name that this one has."""
    owner, _, attribute = name.rpartition(".")
    old = getattr(module.get_submodule(owner), attribute)
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for key in [key for key, value in tensors.items() if value is old]:
                setattr(part, key, tensor)


def computed_weights(
    module: nn.Module, places: Mapping[str, dict[int, list[int]]]
) -> list[tuple[str, str, dict[int, list[int]]]]:
    """Weights that a parametrization computes from tensors that lose positions, and what they lose themselves."""
    found = []
    for name, part in module.named_modules():
        for weight, inner in getattr(part, "parametrizations", {}).items():
            shape = getattr(part, weight).shape
            for key, tensor in inner.named_parameters(recurse=False):
                place = f"{name}.parametrizations.{weight}.{key}".removeprefix(".")
                if place in places and tensor.shape == shape:
                    found.append((name, weight, places[place]))
        hook = norm_hook(part)
        if hook is not None:
            kept = "v" if isinstance(hook, WeightNorm) else "orig"
            if (place := f"{name}.{hook.name}_{kept}".removeprefix(".")) in places:
                found.append((name, hook.name, places[place]))
    return found


def norm_hook(part: nn.Module) -> WeightNorm | SpectralNorm | None:
    """What computes a layer's weight before each call, where torch's older norms of weights do."""
    hooks = part._forward_pre_hooks.values()
    return next((hook for hook in hooks if isinstance(hook, WeightNorm | SpectralNorm)), None)


@torch.no_grad()
def _set_computed(part: nn.Module, weight: str, original: nn.Module, gone: Mapping[int, Sequence[int]]) -> None:
    """Let a parametrization give what it gave, without some positions: a weight norm's length is over what is left."""
    hook, kept = norm_hook(original), getattr(original, weight)
    if isinstance(hook, WeightNorm):
        kept = hook.compute_weight(original)
    elif hook is not None:
        kept = hook.compute_weight(original, do_power_iteration=False)
    for axis, positions in gone.items():
        kept = kept.index_select(axis, _others(kept.shape[axis], positions))
    if isinstance(hook, WeightNorm):
        part.register_parameter(f"{weight}_v", nn.Parameter(kept))
        part.register_parameter(f"{weight}_g", nn.Parameter(torch.norm_except_dim(kept, 2, hook.dim)))
    elif hook is not None:
        part.register_parameter(f"{weight}_orig", nn.Parameter(kept))
        u, v = getattr(part, f"{weight}_u"), getattr(part, f"{weight}_v")
        u /= u @ hook.reshape_weight_to_matrix(kept) @ v  # the norm that it divides by becomes 1
    else:
        with suppress(NotImplementedError):  # a parametrization without an inverse; the guard sees what becomes of it
            setattr(part, weight, kept)


def _others(size: int, positions: Iterable[int]) -> Tensor:
    return torch.tensor(sorted(set(range(size)) - set(positions)), dtype=torch.int64)


def _shrink(part: nn.Module, attribute: str, count: int) -> None:
    """Lower a size that a module keeps; ``shape[-1]`` names an entry of a tuple."""
    base, _, index = attribute.partition("[")
    if index:
        sizes = list(getattr(part, base))
        sizes[int(index[:-1])] -= count
        setattr(part, base, tuple(sizes))
    elif base in HEAD_COUNTS:
        _reduce_heads(part, base, count)
    else:
        setattr(part, base, getattr(part, base) - count)


def _reduce_heads(attention: nn.Module, attribute: str, removed: int) -> None:
    """Set an attention module's number of heads, and with it the widths that it keeps of all heads together."""
    before = getattr(attention, attribute)
    after = before - removed
    setattr(attention, attribute, after)
    for name, value in list(vars(attention).items()):
        if name in ("all_head_size", "inner_dim") and isinstance(value, int):
            setattr(attention, name, value // before * after)
