"""What a pruned network must equal: its original, in which every weight that the pruned one lacks is zero.

A weight is recognised by its value, so nothing of the product's own bookkeeping is believed.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

NORMS = nn.LayerNorm | nn.GroupNorm | nn.RMSNorm


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


@torch.no_grad()
def zeroed(original: nn.Module, pruned: nn.Module) -> nn.Module:
    """The original with the missing weights at zero."""
    reference = copy.deepcopy(original)
    left = dict(pruned.named_modules())
    for name, part in list(reference.named_modules()):
        if isinstance(part, NORMS) and part.weight is not None and part.weight.shape != left[name].weight.shape:
            axis = 1 if isinstance(part, nn.GroupNorm) else -1
            norm = NormOfSome(copy.deepcopy(left[name]), torch.isin(part.weight, left[name].weight), axis)
            owner, _, last = name.rpartition(".")
            setattr(reference.get_submodule(owner), last, norm)
        elif not isinstance(part, NORMS):
            kept = dict(left[name].named_parameters(recurse=False))
            for key, value in part.named_parameters(recurse=False):
                mask = torch.isin(value, kept[key])
                assert int(mask.sum()) == kept[key].numel(), f"{name}.{key} does not hold the original's weights"
                value.mul_(mask)
    return reference


def sqnr_db(expected: Tensor, found: Tensor) -> float:
    """Signal to error in decibels."""
    error = (expected.double() - found.double()).square().sum()
    return math.inf if error == 0 else float(10 * torch.log10(expected.double().square().sum() / error))
