"""Re-estimated batch-norm statistics: after pruning, the stored ones describe the network before it.

Mean and variance are pooled over all samples ("precise" batch norm: Wu and Johnson 2021, section 3,
https://arxiv.org/abs/2105.07576; after pruning: Li et al. 2020, https://arxiv.org/abs/2007.02491).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.data.samples import SampleSet
from pipeline.machine.memory import footprint, require_batch
from pipeline.tasks.prediction import predictor


@dataclass(slots=True)
class _Moments:
    """Sums over all values of each channel ``(C,) float64``."""

    count: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def update(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:  # noqa: ARG002  # a hook's signature
        """Add a batch norm's input ``(N, C, …)``."""
        values = inputs[0].detach().transpose(0, 1).flatten(1).double()
        self.count += values.shape[1]
        self.total = self.total + values.sum(1)
        self.squares = self.squares + values.square().sum(1)


def reestimated(module: nn.Module, data: SampleSet, *, batch_size: int) -> nn.Module:
    """A copy whose batch norms hold the mean and the unbiased variance of their inputs on these samples.

    While the samples run, each batch is normalised by its own statistics, so that stale ones do not affect later
    layers; larger batches are better.
    """
    result = copy.deepcopy(module).eval()
    needs = footprint(lambda count: predictor(result)(data.stand_ins(count)))
    require_batch("quantize: batch norms", needs, min(batch_size, len(data)), setting="quantize.batch_size")
    norms = [part for part in result.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    moments = {norm: _Moments() for norm in norms}
    hooks = [norm.register_forward_pre_hook(found.update) for norm, found in moments.items()]
    with torch.no_grad():
        for norm in norms:
            norm.train()
        for batch in data.batches(batch_size):
            if len(batch.inputs[0]) > 1 or len(data) == 1:  # one sample may have no variance of its own
                result(*batch.inputs)
        for hook in hooks:
            hook.remove()
        for norm, found in moments.items():
            norm.eval()
            if found.count > 1:
                mean = torch.as_tensor(found.total) / found.count
                variance = torch.as_tensor(found.squares) / found.count - mean.square()
                norm.running_mean = mean.float()
                norm.running_var = (variance.clamp_min(0) * found.count / (found.count - 1)).float()
    return result
