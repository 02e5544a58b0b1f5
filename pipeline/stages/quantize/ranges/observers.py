"""Observers: what calibration remembers of each tensor, and the ranges that can be read from it.

Extremes and a histogram of fixed size: memory does not grow with the samples, and one pass over the calibration data
serves every range method and every scheme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

QMIN, QMAX = -128, 127
WEIGHT_QMAX = 127
SIGNIFICANT_BITS = 11
"""Of a scale: as many as FP16 holds."""
BINS = 4096
SEEN, RUN = 2**15, 16
MOMENTUM = 0.01
"""How much of a moving average is replaced by each new sample, once there are a hundred."""

Histogram = np.ndarray[Any, np.dtype[np.float64]]
RangeMethod = Callable[["Statistics"], tuple[float, float]]
Function = Callable[[Histogram], Histogram]


class Statistics:
    """Extremes and a histogram of all values seen, in constant memory.

    The histogram covers ``[-limit, limit]`` with `BINS` equal bins. A value beyond the limit doubles it: neighbouring
    bins are merged, so counts stay exact. Of a tensor with more than `SEEN` values, runs of `RUN` values at even
    distances are counted; extremes are always those of all values.

    Args:
        methods: The range methods that will read them; what none of them needs is not kept.
    """

    def __init__(self, methods: Collection[str] = ("percentile",)) -> None:
        self.low, self.high = 0.0, 0.0
        self.limit = 0.0
        self.counts: Histogram = np.zeros(BINS)
        self.samples = 0
        self.averages = np.zeros(2)
        self._counting = any(method not in ("minmax", "moving_average") for method in methods)
        self._averaging = "moving_average" in methods

    def update(self, values: Tensor) -> bool:
        """Take in a tensor of any shape; False, and nothing taken, where a value is not finite."""
        low, high = (float(extreme) for extreme in values.aminmax())
        if not math.isfinite(high - low):
            return False
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self._averaging:
            self._average(values)
        if self._counting:
            self._count(values, max(-low, high))
        return True

    def widen(self, limit: float) -> None:
        """Double the histogram's limit until it covers ``limit``."""
        if self.limit == 0:
            self.limit = limit
        while limit > self.limit:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([np.zeros(BINS // 4), merged, np.zeros(BINS // 4)])
            self.limit *= 2

    @property
    def centres(self) -> Histogram:
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

    The histogram takes each bin's centre for its values, so counts may move to a neighbouring bin.
    """
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    merged = Statistics()
    merged.low, merged.high = min(part.low for part in parts), max(part.high for part in parts)
    merged.limit = max(part.limit for part in parts)
    merged.samples = max(part.samples for part in parts)
    lows, highs = zip(*(moving_average(part) for part in parts), strict=True)
    merged.averages = np.array([min(lows), max(highs)])
    edges = np.linspace(-merged.limit, merged.limit, BINS + 1)
    for part in parts:
        merged.counts += np.histogram(part.centres, edges, weights=part.counts)[0] if merged.limit else part.counts
    return merged


def minmax(statistics: Statistics) -> tuple[float, float]:
    """The extremes."""
    return statistics.low, statistics.high


def moving_average(statistics: Statistics) -> tuple[float, float]:
    """The moving average of each sample's extremes: one odd sample does not widen the range.

    The average weighs samples alike up to the hundredth, and then every new one as 0.01 (`MOMENTUM`), like
    torch's observer of that name (https://docs.pytorch.org/docs/stable/generated/torch.ao.quantization.observer.MovingAverageMinMaxObserver.html).
    """
    if statistics.samples == 0:
        return minmax(statistics)
    low, high = statistics.averages
    return float(low), float(high)


def percentile(statistics: Statistics, share: float = 0.9999) -> tuple[float, float]:
    """The central range that holds this share of all values (never wider than the extremes)."""
    if statistics.counts.sum() == 0:
        return minmax(statistics)
    cumulative = np.cumsum(statistics.counts) / statistics.counts.sum()
    tail = (1 - share) / 2
    edges = (np.arange(BINS + 1) - BINS / 2) * (2 * statistics.limit / BINS)
    low = edges[np.searchsorted(cumulative, tail, side="right")]
    high = edges[np.searchsorted(cumulative, 1 - tail, side="left") + 1]
    return max(float(low), statistics.low), min(float(high), statistics.high)


def mse(statistics: Statistics) -> tuple[float, float]:
    """The shrunken range ``a * (low, high)``, ``a`` in ``(0.2, 1]``, whose int8 grid has the least squared error."""
    error = _error(statistics, lambda values: values, _sum_of_squares)
    low, high = statistics.low, statistics.high
    best = min(_SHRINKAGE, key=lambda shrink: error(shrink * low, shrink * high))
    return best * low, best * high


def entropy(statistics: Statistics) -> tuple[float, float]:
    """The shrunken range whose int8 histogram tells most of the float one: least Kullback-Leibler divergence.

    What lies outside counts at the ends; each of the 255 steps spreads its count over the bins that it stands for, as
    far as they are not empty. Migacz 2017, "8-bit Inference with TensorRT"
    (https://www.cse.iitd.ac.in/~rijurekha/course/tensorrt.pdf), with both ends shrunk alike.
    """
    used = statistics.counts > 0
    values, counts = statistics.centres[used], statistics.counts[used]
    low, high = statistics.low, statistics.high

    def divergence(shrink: float) -> float:
        first, last = shrink * low, shrink * high
        inside = (values >= first) & (values <= last)
        if not inside.any():
            return math.inf
        kept = counts[inside].copy()
        clipped = kept.copy()
        clipped[0] += counts[values < first].sum()
        clipped[-1] += counts[values > last].sum()
        scale, zero_point = affine_parameters(first, last)
        codes = np.clip(np.round(values[inside] / scale) + zero_point, QMIN, QMAX).astype(int) - QMIN
        bins = QMAX - QMIN + 1
        spread = (np.bincount(codes, kept, bins) / np.maximum(np.bincount(codes, minlength=bins), 1))[codes]
        p, q = clipped / clipped.sum(), spread / spread.sum()
        return float(np.sum(p * np.log(p / q)))

    best = min(_SHRINKAGE, key=divergence) if used.any() else 1.0
    return best * low, best * high


def least_error_through(statistics: Statistics, function: Function, *, worst: bool) -> tuple[float, float]:
    """The range with the least error of ``function(x)``, for a tensor that nothing but that function reads.

    A hardswish gives zero for everything below -3: steps spent there are wasted, whatever the tensor's own error.
    Either end is searched in turn, down to a tenth of the extreme.

    Args:
        worst: Judge by the largest error, which keeps outliers (as min-max does), and not by the squared error.
    """
    error = _error(statistics, function, _largest if worst else _sum_of_squares)
    low, high = statistics.low, statistics.high
    for _ in range(2):
        low = min((shrink * statistics.low for shrink in _FINE_SHRINKAGE), key=lambda end: error(end, high))
        high = min((shrink * statistics.high for shrink in _FINE_SHRINKAGE), key=lambda end: error(low, end))
    return low, high


def _error(
    statistics: Statistics, function: Function, total: Callable[[Histogram, Histogram], float]
) -> Callable[[float, float], float]:
    """The error of ``function`` over the histogram after rounding to int8, as a function of the range."""
    used = statistics.counts > 0
    values, counts = statistics.centres[used], statistics.counts[used]
    exact = function(values)

    def error(low: float, high: float) -> float:
        scale, zero_point = affine_parameters(low, high)
        codes = np.clip(np.round(values / scale) + zero_point, QMIN, QMAX)
        return total(function((codes - zero_point) * scale) - exact, counts)

    return error


def _sum_of_squares(errors: Histogram, counts: Histogram) -> float:
    return float(counts @ np.square(errors))


def _largest(errors: Histogram, counts: Histogram) -> float:  # noqa: ARG001  # one signature for both totals
    return float(np.abs(errors).max(initial=0.0))


_SHRINKAGE = tuple(1 - 0.01 * step for step in range(80))
_FINE_SHRINKAGE = tuple(1 - 0.02 * step for step in range(46))

METHODS: Mapping[str, RangeMethod] = MappingProxyType(
    {"minmax": minmax, "moving_average": moving_average, "percentile": percentile, "mse": mse, "entropy": entropy}
)
"""Range methods by the name that a recipe uses."""


def affine_parameters(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of the int8 grid over ``[low, high]``, widened to hold zero exactly.

    A range that is empty (a tensor that was never anything but zero) gets scale 1.

    >>> affine_parameters(0.0, 25.5)
    (0.10009765625, -128)
    >>> affine_parameters(-64.0, 63.5)
    (0.5, 0)
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        return 1.0, QMIN if low == 0 else 0
    scale = float(representable(np.array((high - low) / (QMAX - QMIN))))
    return scale, int(np.clip(round(QMIN - low / scale), QMIN, QMAX))


def channel_scales(weight: Tensor, axis: int) -> Tensor:
    """Symmetric narrow-range scales ``max|w| / 127`` of each channel ``(C,)``; a channel of zeros takes the largest."""
    peaks = weight.detach().abs().movedim(axis, 0).flatten(1).amax(1)
    largest = peaks.max() if peaks.max() > 0 else torch.ones(())
    scales = torch.where(peaks > 0, peaks, largest).double() / WEIGHT_QMAX
    return torch.from_numpy(representable(scales.numpy())).float()


def representable(scales: Histogram) -> Histogram:
    """The next numbers, rarely over 0.2 % larger, that every target holds and divides by alike; positive, any shape.

    They have 11 significant bits, so FP16 holds them (from 2^-14 up, its smallest normal). Their FP32 reciprocal is
    right to 2^-25, so that multiplying by it turns every multiple of a quarter step below 2^10 into that multiple: the
    ties that average pooling makes are ties in every runtime, whether it divides or multiplies.

    >>> representable(np.array([0.1, 0.5, 1 / 3])).tolist()
    [0.10009765625, 0.5, 0.33349609375]
    """
    mantissas, exponents = np.frexp(scales)
    whole = 2**SIGNIFICANT_BITS
    steps = np.ceil(mantissas * whole - 1e-6)  # a scale that is representable, up to its own rounding, stays
    while not (even := divides_exactly(steps)).all():
        steps = steps + ~even  # ends at 2^11 at the latest: a power of two has an exact reciprocal
    return np.asarray(np.ldexp(steps / whole, exponents))


def divides_exactly(values: Histogram) -> NDArray[np.bool_]:
    """Where the FP32 reciprocal is right to 2^-25, so that multiplying by it is dividing by the value."""
    return np.asarray(np.abs((1 / values).astype(np.float32).astype(np.float64) * values - 1) <= 2**-25)


def fake_quantize(weight: Tensor, scales: Tensor, axis: int) -> Tensor:
    """The values that a weight takes after rounding to its int8 grid."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    steps = scales.view(shape)
    return torch.clamp(torch.round(weight / steps), -WEIGHT_QMAX, WEIGHT_QMAX) * steps
