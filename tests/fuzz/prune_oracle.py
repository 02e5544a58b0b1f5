"""The oracle of pruning: what is left computes what the original computes with the removed weights at zero."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from pipeline import PruneConfig, from_module, prune
from pipeline.core import StageError
from pipeline.models.capture import plain_kernels
from tests.fuzz.findings import Finding, of_refusal
from tests.fuzz.measure import bounds, differences
from tests.fuzz.networks import build
from tests.fuzz.subject import Subject, outputs_of
from tests.pipeline.stages.prune.zeroed import Unverified, zeroed

RATIOS = (0.7, 0.9, 0.99)
PRUNED_DB = 80.0


def pruning(subject: Subject) -> Iterator[Finding]:
    """Prune to 0.7 of the MACs, or to 0.9 or 0.99 where that is refused, and compare."""
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
        reference = zeroed(built.module, pruned)
    except Unverified as error:
        yield Finding("prune", "right", f"unverified: {error}")
        return
    with plain_kernels():  # torch's fused encoder layer reads the weights of norms that the reference replaces
        expected, got = outputs_of(reference, built.samples), outputs_of(pruned, built.samples)
    found = differences(expected, got, bounds(expected, expected, most=PRUNED_DB))
    if found and all(d.what == "dB" for d in found):
        shakes = [t * (1 + 1e-6 * torch.randn_like(t)) if t.dtype == torch.float32 else t for t in built.samples]
        with plain_kernels():
            shaken = outputs_of(reference, shakes)
        found = differences(expected, got, bounds(expected, shaken, most=PRUNED_DB, below=20))
    yield Finding("prune", "wrong", found[0].what, "; ".join(map(str, found))) if found else Finding("prune", "right")


def _give_biases(module: nn.Module) -> None:
    """A bias for every layer, so that all of its channels differ."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.modules.conv._ConvNd) and part.bias is None:
            channels = part.out_features if isinstance(part, nn.Linear) else part.out_channels
            part.bias = nn.Parameter(torch.randn(channels) * 0.2)
