"""The grid of a tensor that only hardswish reads, so that integer runtimes need no rounding inside it.

From -3 up, ``hardswish(x) = x * min(x + 3, 6) / 6``; below, it is 0. On a grid that begins at -3 and in which 3 is z
whole steps, ``x + 3`` has the integers of x itself, ``q``: hardswish is the integer product ``(q - z) * min(q, 2 z)``
with one rounding after it. Values below -3 are clipped, which changes nothing.
"""

from __future__ import annotations

import numpy as np

from pipeline.stages.quantize.scales.grids import ActivationGrid
from pipeline.stages.quantize.scales.numbers import QMAX, QMIN, representable

STEP_GROWTH = 1.1
"""How much coarser the steps may become so that the range begins at -3."""
COARSEST = 1 / 10
"""The share of z that may be given up for a product ``scale * z`` nearer to 3."""


class HardswishInputGrid(ActivationGrid):
    """A grid that begins at -3 if that costs little; otherwise it is like any other."""

    def set_range(self, low: float, high: float) -> None:
        """Cover ``[-3, high]`` or a little more, or ``[low, high]`` if that needs much smaller steps."""
        super().set_range(low, high)
        if high + 3 <= STEP_GROWTH * (max(high, 0.0) - min(low, 0.0)) and high + 3 <= 3 * (QMAX - QMIN):
            self.scale, steps = three_in_whole_steps(high)
            self.zero_point = QMIN + steps


def three_in_whole_steps(high: float) -> tuple[float, int]:
    """The scale of a grid over ``[-3, high]`` or a little more, and how many steps make 3.

    Few scales can be stored by every target: of those that are up to `COARSEST` too large, this is the one that comes
    nearest.

    >>> three_in_whole_steps(4.96875)
    (0.03125, 96)
    """
    most = min(int(3 * (QMAX - QMIN) / (high + 3)), QMAX - QMIN)
    steps = np.arange(int(np.ceil(most * (1 - COARSEST))), most + 1)
    scales = representable(np.multiply.outer(1 - np.arange(4) / 2**11, 3 / steps))
    row, column = np.unravel_index(np.abs(scales * steps - 3).argmin(), scales.shape)
    return float(scales[row, column]), int(steps[column])
