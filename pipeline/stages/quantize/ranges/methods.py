"""Range methods: how the range of a tensor, or of several that share it, is read from what calibration kept.

All have one form: a `RangeMethod` reads `Evidence`. To add one, write its function and give it a row in `METHODS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from pipeline.stages.quantize.ranges.output_error import OutputError, least_output_error
from pipeline.stages.quantize.ranges.statistics import BINS, Statistics
from pipeline.stages.quantize.scales.numbers import QMAX, QMIN, Floats, affine_parameters

Range = tuple[float, float]
Function = Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of values that share one range.

    Attributes:
        statistics: Of all of them together.
        errors: What candidate ranges cost the outputs, if that was measured and any output depends on the values.
        reader: The elementwise function that alone reads the value, if there is one; then its result's error decides.
    """

    statistics: Statistics
    errors: tuple[OutputError, ...] = ()
    reader: Function | None = None


@dataclass(frozen=True, slots=True)
class RangeMethod:
    """One way to choose a range, and what it needs calibration to keep.

    Attributes:
        read: The range, from the evidence.
        histogram: Whether it reads the histogram.
        averages: Whether it reads the moving averages of the extremes.
        gradients: Whether it reads how the outputs depend on the values.
    """

    read: Callable[[Evidence], Range]
    histogram: bool = False
    averages: bool = False
    gradients: bool = False


def minmax(statistics: Statistics) -> Range:
    """The extremes."""
    return statistics.low, statistics.high


def moving_average(statistics: Statistics) -> Range:
    """The moving average of each sample's extremes: one odd sample does not widen the range.

    The first hundred samples have equal weight; each later one has weight 0.01 (`MOMENTUM`), as in torch's observer
    of that name (https://docs.pytorch.org/docs/stable/generated/torch.ao.quantization.observer.MovingAverageMinMaxObserver.html).
    """
    return statistics.average_extremes


def percentile(statistics: Statistics, share: float = 0.9999) -> Range:
    """The central range that holds this share of all values (never wider than the extremes)."""
    if statistics.counts.sum() == 0:
        return minmax(statistics)
    cumulative = np.cumsum(statistics.counts) / statistics.counts.sum()
    tail = (1 - share) / 2
    edges = (np.arange(BINS + 1) - BINS / 2) * (2 * statistics.limit / BINS)
    low = edges[np.searchsorted(cumulative, tail, side="right")]
    high = edges[np.searchsorted(cumulative, 1 - tail, side="left") + 1]
    return max(float(low), statistics.low), min(float(high), statistics.high)


def mse(statistics: Statistics) -> Range:
    """The shrunken range ``a * (low, high)``, ``a`` in ``(0.2, 1]``, whose int8 grid has the least squared error."""
    error = _error(statistics, lambda values: values, _sum_of_squares)
    low, high = statistics.low, statistics.high
    best = min(_SHRINKAGE, key=lambda shrink: error(shrink * low, shrink * high))
    return best * low, best * high


def entropy(statistics: Statistics) -> Range:
    """The shrunken range whose int8 histogram has the least Kullback-Leibler divergence from the float one.

    Values outside count at the ends; each of the 255 steps spreads its count over the non-empty bins that it
    represents. Migacz 2017, "8-bit Inference with TensorRT"
    (https://www.cse.iitd.ac.in/~rijurekha/course/tensorrt.pdf), with both ends shrunk by one factor.
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


def least_error_through(statistics: Statistics, function: Function, *, worst: bool) -> Range:
    """The range with the least error of ``function(x)``, for a tensor that only that function reads.

    Hardswish is zero for everything below -3, so steps spent there are wasted. The ends are searched in turn, each down
    to a tenth of its extreme.

    Args:
        worst: Minimise the largest error, which keeps outliers (as min-max does), instead of the squared error.
    """
    error = _error(statistics, function, _largest if worst else _sum_of_squares)
    low, high = statistics.low, statistics.high
    for _ in range(2):
        low = min((shrink * statistics.low for shrink in _FINE_SHRINKAGE), key=lambda end: error(end, high))
        high = min((shrink * statistics.high for shrink in _FINE_SHRINKAGE), key=lambda end: error(low, end))
    return low, high


def _error(
    statistics: Statistics, function: Function, total: Callable[[Floats, Floats], float]
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


def _sum_of_squares(errors: Floats, counts: Floats) -> float:
    return float(counts @ np.square(errors))


def _largest(errors: Floats, counts: Floats) -> float:  # noqa: ARG001  # one signature for both totals
    return float(np.abs(errors).max(initial=0.0))


_SHRINKAGE = tuple(1 - 0.01 * step for step in range(80))
_FINE_SHRINKAGE = tuple(1 - 0.02 * step for step in range(46))


def output_mse(evidence: Evidence) -> Range:
    """The range with the least estimated error of the network's outputs (`output_error`).

    Values that no float output depends on are judged by their own squared error.
    """
    if evidence.errors:
        return least_output_error(evidence.errors)
    return _by_statistics(mse)(evidence)


def _by_statistics(method: Callable[[Statistics], Range], *, worst: bool = False) -> Callable[[Evidence], Range]:
    """A method that reads statistics alone; where one function reads the value, that function's error decides."""

    def read(evidence: Evidence) -> Range:
        if evidence.reader is not None:
            return least_error_through(evidence.statistics, evidence.reader, worst=worst)
        return method(evidence.statistics)

    return read


METHODS: Mapping[str, RangeMethod] = MappingProxyType(
    {
        "minmax": RangeMethod(_by_statistics(minmax, worst=True)),
        "moving_average": RangeMethod(_by_statistics(moving_average), averages=True),
        "percentile": RangeMethod(_by_statistics(percentile), histogram=True),
        "mse": RangeMethod(_by_statistics(mse), histogram=True),
        "entropy": RangeMethod(_by_statistics(entropy), histogram=True),
        "output_mse": RangeMethod(output_mse, histogram=True, gradients=True),
    }
)
"""Range methods by the name that a recipe uses."""
