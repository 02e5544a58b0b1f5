"""How much latency samples vary, and which measurements are unreliable."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from pipeline.report.model import Report
from pipeline.target import Latency, Measured

NOISY = 0.10
"""From this spread on, a measurement is called unstable (the rule of https://pyperf.readthedocs.io/en/latest/analyze.html)."""


def spread(samples: Sequence[int]) -> float:
    """Standard deviation over mean; 0 for a single sample.

    >>> round(spread([90, 100, 110]), 3)
    0.1
    """
    return statistics.stdev(samples) / statistics.fmean(samples) if len(samples) > 1 else 0.0


def percentile(samples: Sequence[int], rank: int) -> float:
    """The inclusive percentile, interpolated between neighbours.

    >>> percentile([100, 200, 300], 10)
    120.0
    """
    position = (len(samples) - 1) * rank / 100
    low, ordered = int(position), sorted(samples)
    high = min(low + 1, len(samples) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def median_uncertainty(samples: Sequence[int]) -> float:
    """Half the width of the median's 95 % confidence interval, relative to the median; infinite below six samples.

    The interval assumes no distribution. It lies between the order statistics ``n/2 ± 1.96·√n/2``
    (Conover, Practical Nonparametric Statistics, 3rd edition, section 3.2).

    >>> median_uncertainty(range(1, 101))  # the 40th and the 61st of 1 … 100: (61 - 40) / 2 / 50.5
    0.2079...
    """
    count = len(samples)
    if count < 6:
        return math.inf
    ordered = sorted(samples)
    low = math.floor(count / 2 - 0.98 * math.sqrt(count))
    high = math.ceil(1 + count / 2 + 0.98 * math.sqrt(count))
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return (ordered[min(high, count) - 1] - ordered[max(low, 1) - 1]) / 2 / middle


def all_latencies(report: Report) -> Iterator[tuple[str, Latency]]:
    """Every latency of a report under the model's name, the original's first."""
    yield from (("original", latency) for latency in report.original.latency)
    for target in report.targets:
        yield from ((f"{target.target} fp32", latency) for latency in target.fp32_latency)
        yield from ((target.target, latency) for latency in target.latency)


def unstable(report: Report) -> list[tuple[str, Measured, float]]:
    """Measurements whose spread is at least `NOISY`, with that spread."""
    return [
        (name, latency, found)
        for name, latency in all_latencies(report)
        if isinstance(latency, Measured) and (found := spread(latency.samples_ns)) >= NOISY
    ]
