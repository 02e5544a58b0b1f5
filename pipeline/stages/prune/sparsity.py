"""Sparsity: single weights become zero, and stay in place. Smaller on paper only, and the record says so."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.core import SkippedLayer
from pipeline.models.duplicate import copy_module
from pipeline.models.layers import is_within
from pipeline.recipe import Sparsity
from pipeline.stages.prune.coupling import PRUNABLE

logger = logging.getLogger(__name__)

NOTE = (
    "zeros are stored and multiplied like any other weight: the files that this pipeline writes for onnxruntime, "
    "Core ML and TFLite get neither smaller nor faster by them"
)


@torch.no_grad()
def sparsify(
    module: nn.Module, config: Sparsity, skip: Sequence[str] = ()
) -> tuple[nn.Module, tuple[SkippedLayer, ...]]:
    """A copy whose smallest weights are zero, layer by layer, and the layers that keep all of theirs."""
    module = copy_module(module)
    skipped = []
    for name, layer in module.named_modules():
        if not isinstance(layer, PRUNABLE):
            continue
        if is_within(name, skip):
            skipped.append(SkippedLayer(layer=name, reason="named in skip"))
            continue
        for weight in _matrices(layer):
            if config.pattern is not None and weight.shape[1] % config.pattern[1]:
                reason = f"{weight.shape[1]} weights in a row cannot be cut into groups of {config.pattern[1]}"
                skipped.append(SkippedLayer(layer=name, reason=reason))
            else:
                weight.mul_(_kept(weight, config))
    for entry in skipped:
        logger.debug("%s keeps all its weights: %s", entry.layer, entry.reason)
    return module, tuple(skipped)


def zero_ratio(module: nn.Module) -> float:
    """The share of zeros among all weights that `sparsify` looks at."""
    weights = [weight for layer in module.modules() if isinstance(layer, PRUNABLE) for weight in _matrices(layer)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


@contextmanager
def zeros_stay(module: nn.Module) -> Iterator[None]:
    """Keep every weight at zero that is zero now while the block trains: its gradient, decay and momentum are zero."""
    handles = []
    for layer in module.modules():
        for weight in _matrices(layer) if isinstance(layer, PRUNABLE) else ():
            kept = (weight != 0).to(weight.dtype)
            handle = weight.register_hook(partial(torch.mul, kept))  # type: ignore[no-untyped-call]  # torch's
            handles.append(handle)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _matrices(layer: nn.Module) -> list[Tensor]:
    return [parameter for name, parameter in layer.named_parameters(recurse=False) if name.startswith("weight")]


def _kept(weight: Tensor, config: Sparsity) -> Tensor:
    """1 where a weight stays. N:M keeps the N largest of every M neighbours along the inputs.

    >>> _kept(torch.tensor([[3.0, -4.0, 1.0, 2.0]]), Sparsity(pattern=(2, 4)))
    tensor([[1., 1., 0., 0.]])
    """
    size = weight.abs()
    if config.pattern is not None:
        keep, of = config.pattern
        rows = size.movedim(1, -1)
        groups = rows.reshape(*rows.shape[:-1], -1, of)
        ranks = groups.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        largest: Tensor = ranks < keep
        return largest.to(weight.dtype).flatten(-2).movedim(-1, 1)
    assert config.ratio is not None
    ranks = size.flatten().argsort(dim=0, stable=True).argsort()
    return (ranks >= round(config.ratio * size.numel())).to(weight.dtype).view_as(weight)
