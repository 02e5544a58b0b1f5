"""Statistics: what calibration keeps of each tensor.

Extremes and a histogram of fixed size: memory does not grow with the samples, and one pass over the calibration data
serves every range method and every scheme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from pipeline.stages.quantize.scales.numbers import Floats

BINS = 4096
SEEN, RUN = 2**15, 16
MOMENTUM = 0.01
"""Weight of a new sample in a moving average, once there are a hundred."""


class Statistics:
    """Extremes and a histogram of all values seen, in constant memory.

    The histogram covers ``[-limit, limit]`` with `BINS` equal bins. A value beyond the limit doubles it: neighbouring
    bins are merged, so counts stay exact. Of a tensor with more than `SEEN` values, evenly spaced runs of
    `RUN` values are counted; extremes always cover all values.

    Args:
        counts: Whether the histogram is kept.
        averages: Whether the moving averages of the extremes are kept.
    """

    def __init__(self, *, counts: bool = True, averages: bool = False) -> None:
        self.low, self.high = 0.0, 0.0
        self.limit = 0.0
        self.counts: Floats = np.zeros(BINS)
        self.samples = 0
        self.averages = np.zeros(2)
        self._counting, self._averaging = counts, averages

    def update(self, values: Tensor) -> bool:
        """Add a tensor of any shape; return False, and add nothing, if a value is not finite."""
        low, high = (float(extreme) for extreme in values.aminmax())
        if not math.isfinite(high - low):
            return False
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self._averaging:
            self._average(values)
        if self._counting:
            self._count(values, max(-low, high))
        return True

    @property
    def average_extremes(self) -> tuple[float, float]:
        """The moving averages of each sample's extremes; the extremes where there were no samples."""
        if self.samples == 0:
            return self.low, self.high
        low, high = self.averages
        return float(low), float(high)

    def widen(self, limit: float) -> None:
        """Double the histogram's limit until it covers ``limit``."""
        if self.limit == 0:
            self.limit = limit
        while limit > self.limit:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([np.zeros(BINS // 4), merged, np.zeros(BINS // 4)])
            self.limit *= 2

    @property
    def centres(self) -> Floats:
        """The middle of each bin, ``(BINS,)``, in the units of the tensor."""
        return np.asarray((np.arange(BINS) + 0.5 - BINS / 2) * (2 * self.limit / BINS), dtype=np.float64)

    def _count(self, values: Tensor, peak: float) -> None:
        some = values.reshape(-1)
        if some.numel() > SEEN:
            every = some.numel() // SEEN
            some = some[: some.numel() // RUN * RUN].view(-1, RUN)[::every].flatten()
        if peak == 0:
            self.counts[BINS // 2] += some.numel()
            return
        self.widen(peak)
        self.counts += torch.histc(some.float(), BINS, -self.limit, self.limit).numpy()

    def _average(self, values: Tensor) -> None:
        samples = values.reshape(len(values), -1)
        for extremes in torch.stack([samples.amin(1), samples.amax(1)], 1).numpy():
            self.samples += 1
            self.averages += (extremes - self.averages) * max(MOMENTUM, 1 / self.samples)


def merge(parts: Iterable[Statistics]) -> Statistics:
    """Statistics of several tensors together, as when they share one set of parameters.

    Each bin counts as its centre, so counts may move to a neighbouring bin.
    """
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    merged = Statistics()
    merged.low, merged.high = min(part.low for part in parts), max(part.high for part in parts)
    merged.limit = max(part.limit for part in parts)
    merged.samples = max(part.samples for part in parts)
    lows, highs = zip(*(part.average_extremes for part in parts), strict=True)
    merged.averages = np.array([min(lows), max(highs)])
    edges = np.linspace(-merged.limit, merged.limit, BINS + 1)
    for part in parts:
        merged.counts += np.histogram(part.centres, edges, weights=part.counts)[0] if merged.limit else part.counts
    return merged
