"""Equality: whether two graphs compute the same function, on real samples.

A rewrite that keeps the function may still round in another order, so float32 agrees to some 120 dB and not to the bit.
Where a deep or badly scaled network has more rounding noise than that, float64 tells rounding from a mistake.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.tasks.comparison import sqnr_db
from pipeline.tasks.prediction import predictor

FLOAT32_DB, FLOAT64_DB = 100.0, 140.0
"""SQNR of every output from which two functions count as the same, in either precision."""

ROUNDING_DB = 10.0
"""How much further than the original's own rounding a rewritten function may lie, whose new constants were rounded,
too: a network that subtracts nearly equal numbers has few digits left in either. Of an output that is nothing but
rounding errors, nothing is asked."""

LEAST_DB = 80.0
"""What is asked in float64 in any case."""


def least_sqnr_db(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The SQNR of the output that differs most, in dB: infinite where all are equal; minus infinity in other shapes."""
    if [value.shape for value in expected] != [value.shape for value in found]:
        return -float("inf")
    return min((sqnr_db(one, other) for one, other in zip(expected, found, strict=True)), default=float("inf"))


def difference_db(original: nn.Module, rewritten: nn.Module, inputs: tuple[Tensor, ...]) -> float | None:
    """By how many dB of SQNR a rewritten module differs from the original; None where it is the same function.

    Args:
        inputs: Real samples ``(N, …)``.
    """
    expected, found = predictor(original)(inputs), predictor(rewritten)(inputs)
    in_float32 = least_sqnr_db(expected, found)
    if in_float32 >= FLOAT32_DB:
        return None
    exact, tested = (_in_float64(module, inputs) for module in (original, rewritten))
    if exact is None or tested is None:
        return in_float32
    unlike = []
    for one, other, rounded in zip(exact, tested, expected, strict=True):
        in_float64, own = least_sqnr_db([one], [other]), least_sqnr_db([one], [rounded])
        if own > 0 and in_float64 < min(FLOAT64_DB, max(LEAST_DB, own - ROUNDING_DB)):
            unlike.append(in_float64)
    return min(unlike, default=None)


def _in_float64(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """A module's outputs in float64; None where its own code holds on to float32."""
    try:
        wide = copy.deepcopy(module).double()
        return predictor(wide)(tuple(each.double() if each.is_floating_point() else each for each in inputs))
    except (RuntimeError, TypeError):  # torch refuses to mix the two precisions
        return None
