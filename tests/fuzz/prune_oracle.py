"""The oracle of pruning: what is left computes what the original computes with the removed weights at zero."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pipeline import PruneConfig, from_module, prune
from pipeline.core import StageError
from tests.fuzz.findings import Finding, of_refusal
from tests.fuzz.measure import bounds, differences
from tests.fuzz.networks import build
from tests.fuzz.subject import Subject, outputs_of

RATIOS = (0.7, 0.9)
PRUNED_DB = 80.0
NORMS_OVER_CHANNELS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Unverified(Exception):  # noqa: N818  # an answer, not an error
    """It cannot be told which weights are left."""


class Held(nn.Module):
    """A norm over some channels only, inside a network that has all of them; the others become zero."""

    def __init__(self, norm: nn.Module, kept: Tensor, axis: int) -> None:
        super().__init__()
        self.norm, self.kept, self.axis = norm, kept, axis

    def forward(self, x: Tensor) -> Tensor:
        index = self.kept.nonzero().squeeze(1)
        return torch.zeros_like(x).index_copy(self.axis, index, self.norm(x.index_select(self.axis, index)))


def pruning(subject: Subject) -> Iterator[Finding]:
    """Prune to 0.7 of the MACs, or to 0.9 where that is refused, and compare."""
    built = build(subject.built.network)
    _give_biases(built.module)
    model = from_module(built.module, built.inputs, outputs=built.outputs)
    refusal = ""
    for ratio in RATIOS:
        with subject.stage("prune"):
            try:
                pruned = prune(model, PruneConfig(macs_ratio=ratio, round_to=2)).module
            except StageError as error:
                refusal = str(error)
                continue
        break
    else:
        yield of_refusal("prune", refusal)
        return
    try:
        reference = held_at_zero(built.module, pruned)
    except Unverified as error:
        yield Finding("prune", "right", f"unverified: {error}")
        return
    expected, got = outputs_of(reference, built.samples), outputs_of(pruned, built.samples)
    found = differences(expected, got, bounds(expected, expected, most=PRUNED_DB))
    if found and all(d.what == "dB" for d in found):
        shakes = [t * (1 + 1e-6 * torch.randn_like(t)) if t.dtype == torch.float32 else t for t in built.samples]
        found = differences(expected, got, bounds(expected, outputs_of(reference, shakes), most=PRUNED_DB, below=20))
    yield Finding("prune", "wrong", found[0].what, "; ".join(map(str, found))) if found else Finding("prune", "right")


def _give_biases(module: nn.Module) -> None:
    """A bias for every layer, so that all of its channels differ."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.modules.conv._ConvNd) and part.bias is None:
            channels = part.out_features if isinstance(part, nn.Linear) else part.out_channels
            part.bias = nn.Parameter(torch.randn(channels) * 0.2)


def held_at_zero(original: nn.Module, pruned: nn.Module) -> nn.Module:
    """The original, in which every weight that the pruned network lacks is zero.

    A weight is told by its value: all of them are random numbers, so it is left where its value is.

    Raises:
        Unverified: Values are not unique, or a kind of layer shrank that this cannot follow.
    """
    reference = copy.deepcopy(original)
    left = dict(pruned.named_modules())
    with torch.no_grad():
        for name, part in list(reference.named_modules()):
            other = left.get(name)
            if other is None:
                raise Unverified(f"{name} is gone")
            shrunk = {
                key: (value, dict(other.named_parameters(recurse=False))[key])
                for key, value in part.named_parameters(recurse=False)
                if value.shape != dict(other.named_parameters(recurse=False))[key].shape
            }
            if isinstance(part, NORMS_OVER_CHANNELS):
                if _channels(part) != _channels(other):
                    _replace(reference, name, _held_norm(part, other))
                continue
            for key, (value, kept) in shrunk.items():
                mask = torch.isin(value, kept)
                if int(mask.sum()) != kept.numel():
                    raise Unverified(f"the values of {name}.{key} are not unique")
                value.mul_(mask)
    return reference


def _channels(norm: nn.Module) -> int:
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else math.prod(norm.normalized_shape)


def _held_norm(original: nn.Module, pruned: nn.Module) -> Held:
    if original.weight is None or original.weight.ndim != 1:
        raise Unverified(f"a {type(original).__name__} without one weight per channel shrank")
    kept = torch.isin(original.weight, pruned.weight)
    return Held(copy.deepcopy(pruned), kept, 1 if isinstance(original, nn.GroupNorm) else -1)


def _replace(module: nn.Module, name: str, part: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, part)
