"""Output error: choose a range by the estimated effect of its rounding and clipping on the network's outputs.

A value x that becomes x + e moves the outputs by J e, to first order, J being their Jacobian. With v of independent
entries of mean 0 and variance 1, the mean of ``(v J e)^2`` is ``|J e|^2``, and ``g = v J`` costs one backward pass.
Rounding errors inside the range are nearly independent: they cost ``s^2 / 12 * sum(g^2)``, s being the step.
Clipping errors share a sign and add up: ``sum(g e)^2`` over each sample. Both are summed for all candidates at once,
so memory does not grow with the samples. The errors of several outputs count relative to each output's own size, so
that boxes in pixels do not drown scores.

The second-order view of output error is that of Li et al. 2021, "BRECQ" (https://arxiv.org/abs/2102.05426); random
vectors for such sums are Hutchinson's (https://doi.org/10.1080/03610919008812866).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from pipeline.core.outputs import output_tuple
from pipeline.data.samples import SampleSet, examples_of
from pipeline.machine.memory import footprint, require_batch
from pipeline.models.capture import example_inputs
from pipeline.stages.quantize.graph.nodes import key_of
from pipeline.stages.quantize.scales.numbers import QMAX, QMIN

STEP, STEPS = 0.03, 28
SHRINKAGE = 1 - STEP * torch.arange(STEPS, dtype=torch.float64)
"""Candidate ends of a range, as shares of the extreme: 1, 0.97 … 0.19."""

VECTORS = 2
"""Random vectors that the outputs of a batch are multiplied with."""

ELEMENTS = 100_000_000
"""Limit for the activations that are examined, which takes seconds on one core; small networks stay below it."""


class OutputError:
    """What every candidate range of one value costs the outputs.

    Args:
        low: The smallest value seen, at most 0.
        high: The largest, at least 0.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self._squares = 0.0  # squared gradients of all values but zeros, which every grid holds exactly
        self._outside = torch.zeros(2, STEPS, dtype=torch.float64)  # of those that a candidate end clips
        self._clipping = torch.zeros(2 * STEPS, 2 * STEPS, dtype=torch.float64)  # products of the errors of two ends

    def update(self, values: Tensor, gradients: Sequence[Tensor]) -> None:
        """Add a value ``(N, …)`` and its gradients of ``v @ outputs`` for several v; errors add up within a row."""
        x = values.reshape(len(values) if values.ndim > 1 else 1, -1)
        slopes = torch.stack([gradient.reshape(x.shape) for gradient in gradients])
        self._squares += float((slopes * (x != 0)).square().sum(dtype=torch.float64))
        moved = torch.cat([self._clip(side, end, x, slopes) for side, end in enumerate((self.low, self.high))], 1)
        self._clipping += moved.T @ moved

    def costs(self) -> Tensor:
        """The squared error of the outputs ``(STEPS, STEPS)``: a row per low end, a column per high end."""
        steps = (self.high * SHRINKAGE[None] - self.low * SHRINKAGE[:, None]) / (QMAX - QMIN)
        inside = self._squares - self._outside[0][:, None] - self._outside[1][None]
        alone = self._clipping.diagonal()
        clipped = alone[:STEPS, None] + alone[None, STEPS:] + 2 * self._clipping[:STEPS, STEPS:]
        return inside * steps.square() / 12 + clipped

    def _clip(self, side: int, end: float, x: Tensor, slopes: Tensor) -> Tensor:
        """How far clipping at each candidate of one end moves the outputs: ``(vectors * rows, STEPS)``."""
        if end == 0:
            return torch.zeros(len(slopes) * len(x), STEPS, dtype=torch.float64)
        row, column = torch.nonzero(x / end > float(SHRINKAGE[-1]), as_tuple=True)
        beyond, g = x[row, column].double(), slopes[:, row, column].double()
        first = ((1 - beyond / end) / STEP).floor().long().add(1).clamp_(0, STEPS - 1)  # the widest that clips it

        def total(amounts: Tensor) -> Tensor:
            """Per vector, row and candidate: the sum over what that candidate clips."""
            sums = torch.zeros(len(amounts), len(x) * STEPS, dtype=torch.float64)
            return sums.index_add_(1, row * STEPS + first, amounts).reshape(-1, STEPS).cumsum(1)

        self._outside[side] += total(g.square()).sum(0)
        return end * SHRINKAGE * total(g) - total(g * beyond)


def least_output_error(errors: Sequence[OutputError]) -> tuple[float, float]:
    """The range with the least cost for values that share it; all have the same ends."""
    together = torch.stack([error.costs() for error in errors]).sum(0)
    low, high = np.unravel_index(int(together.argmin()), (STEPS, STEPS))
    return errors[0].low * float(SHRINKAGE[low]), errors[0].high * float(SHRINKAGE[high])


def output_errors(
    graph: GraphModule, ends: Mapping[str, tuple[float, float]], data: SampleSet, *, batch_size: int, seed: int = 0
) -> dict[str, OutputError]:
    """Run the float graph forwards and backwards over some samples.

    Args:
        ends: The extremes of each value to examine, by the node's key.
        batch_size: Samples that are run at once.
        seed: Of the random vectors.

    Returns:
        By the node's key; a value that no float output depends on is left out.

    Raises:
        EdgewrightError: A batch does not fit into memory.
    """
    examples, generator = examples_of(data), torch.Generator().manual_seed(seed)
    needs = footprint(lambda count: _slopes(graph, ends, example_inputs(examples, count), torch.Generator()))
    require_batch("quantize: gradients", needs, min(batch_size, len(data)), setting="quantize.batch_size")
    found: dict[str, OutputError] = {}
    left = ELEMENTS
    sizes: tuple[float, ...] = ()
    for batch in data.batches(batch_size):
        kept, gradients, sizes = _slopes(graph, ends, batch.inputs, generator, sizes)
        if not gradients:
            break
        for (name, value), *slopes in zip(kept.items(), *gradients, strict=True):
            if slopes[0] is not None:
                found.setdefault(name, OutputError(*ends[name])).update(value.detach(), slopes)
                left -= value.numel()
        if left <= 0:
            break
    return found


def _slopes(
    graph: GraphModule,
    keys: Collection[str],
    inputs: tuple[Tensor, ...],
    generator: torch.Generator,
    sizes: tuple[float, ...] = (),
) -> tuple[dict[str, Tensor], list[tuple[Tensor, ...]], tuple[float, ...]]:
    """Some values of one batch, and their gradients for each random vector; none where no output depends on them.

    Args:
        sizes: How large each float output is, by which its errors are divided; taken from this batch where empty.

    Returns:
        The values by their node's key, their gradients, and the sizes.
    """
    run = _Tracing(graph, keys)
    with torch.enable_grad():
        outputs = run.run(*inputs)
        parts = [part for part in _flat(outputs) if part.requires_grad]
    if not parts or not run.kept:
        return {}, [], sizes
    sizes = sizes or tuple(float(part.detach().square().mean().sqrt()) or 1.0 for part in parts)
    gradients = [
        torch.autograd.grad(
            parts,
            list(run.kept.values()),
            [torch.randn(part.shape, generator=generator) / size for part, size in zip(parts, sizes, strict=True)],
            retain_graph=True,
            allow_unused=True,
        )
        for _ in range(VECTORS)
    ]
    return run.kept, gradients, sizes


class _Tracing(Interpreter):
    """Runs the graph, and keeps some values so that gradients reach them."""

    def __init__(self, graph: GraphModule, keys: Collection[str]) -> None:
        super().__init__(graph)
        self._keys = keys
        self.kept: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if key_of(n) in self._keys:
            value = value if value.requires_grad else value.detach().requires_grad_()
            self.kept[key_of(n)] = value
        return value


def _flat(outputs: Any) -> list[Tensor]:
    return [part for part in output_tuple(outputs) if isinstance(part, Tensor)]
