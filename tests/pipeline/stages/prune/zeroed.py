"""What a pruned network must equal: its original, in which every weight that the pruned one lacks is zero.

A weight is recognised by its value, so nothing of the product's own bookkeeping is believed.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

NORMS_OVER_CHANNELS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Unverified(Exception):  # noqa: N818  # an answer, not an error
    """It cannot be told which weights are left."""


def make_values_unique(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter values of which none occurs twice, as large as before."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.parameters():
        grid = (torch.randperm(tensor.numel(), generator=generator) + 0.5) / tensor.numel() - 0.5
        scale = 2 * tensor.detach().abs().max().clamp_min(0.1)
        tensor.data = (scale * grid + tensor.detach().mean()).view_as(tensor)


class NormOfSome(nn.Module):
    """A norm over the channels that are left, in a network that has them all."""

    def __init__(self, norm: nn.Module, kept: Tensor, axis: int) -> None:
        super().__init__()
        self.norm, self.kept, self.axis = norm, kept, axis

    def forward(self, x: Tensor) -> Tensor:
        index = self.kept.nonzero().squeeze(1)
        return torch.zeros_like(x).index_copy(self.axis, index, self.norm(x.index_select(self.axis, index)))


def zeroed(original: nn.Module, pruned: nn.Module) -> nn.Module:
    """The original, in which every weight that the pruned network lacks is zero.

    A weight is told by its value, so it is left where its value is.

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
            there = _tensors(other)
            shrunk = {
                key: (value, there[key]) for key, value in _tensors(part).items() if value.shape != there[key].shape
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


def _tensors(part: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and buffers; what a batch norm keeps does not matter where its weight is zero."""
    buffers = () if isinstance(part, nn.modules.batchnorm._NormBase) else part.named_buffers(recurse=False)
    return dict((*part.named_parameters(recurse=False), *buffers))


def _channels(norm: nn.Module) -> int:
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else math.prod(norm.normalized_shape)


def _held_norm(original: nn.Module, pruned: nn.Module) -> NormOfSome:
    if original.weight is None or original.weight.ndim != 1:
        raise Unverified(f"a {type(original).__name__} without one weight per channel shrank")
    kept = torch.isin(original.weight, pruned.weight)
    return NormOfSome(copy.deepcopy(pruned), kept, 1 if isinstance(original, nn.GroupNorm) else -1)


def _replace(module: nn.Module, name: str, part: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, part)
