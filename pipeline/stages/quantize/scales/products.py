"""Scales for which the product of a tensor and its own sigmoid (SiLU) rounds the same way in every runtime.

Such a product has 256 values, one for each integer of the tensor. TFLite's plain kernels and NPUs round twice, and
differ from the others only if a value lies less than one unit of the product below the midpoint between two integers.
With an arbitrary scale that is one or two of the 256 values; with a scale that is a few tenths of a percent larger it
is nearly always none. The first scale with the fewest such values is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import GraphModule

from pipeline.stages.quantize.graph.capabilities import aten
from pipeline.stages.quantize.scales.grids import ActivationGrid, FixedGrid
from pipeline.stages.quantize.scales.numbers import QMAX, QMIN, representable, rounded
from pipeline.stages.quantize.scales.sums import SCALE_GROWTH, grid_at, quantizer_of, unit_of

PRODUCTS = (aten.mul.Tensor,)

POINTWISE = (aten.sigmoid.default, aten.tanh.default)
"""Functions whose kernels prescribe a grid, and which give one value for each of the tensor's."""


@dataclass(frozen=True, eq=False)
class SelfProduct:
    """The grids of ``x * f(x)``, and f, whose own grid an integer kernel prescribes."""

    factor: ActivationGrid
    function: Any
    prescribed: FixedGrid
    result: ActivationGrid

    @property
    def unit(self) -> float:
        """What the integer products are multiples of."""
        return self.factor.scale * float(self.prescribed.scale)

    def integers(self) -> NDArray[np.float64]:
        """The integer product for each of the tensor's 256 integers, ``(256,)``."""
        distances = torch.arange(QMIN, QMAX + 1) - self.factor.zero_point
        scale = float(self.prescribed.scale)
        shares = rounded(self.function(distances * self.factor.scale), scale, int(self.prescribed.zero_point)) / scale
        return np.asarray((distances * shares.round()).double())


def self_products_of(prepared: GraphModule) -> tuple[SelfProduct, ...]:
    """The products ``x * f(x)`` of a prepared graph, in its order."""
    found = []
    for node in prepared.graph.nodes:
        if node.target not in PRODUCTS or len(node.all_input_nodes) != 2:
            continue
        result = grid_at(prepared, quantizer_of(node), ActivationGrid)
        for x, share in (node.all_input_nodes, node.all_input_nodes[::-1]):
            factor, prescribed = grid_at(prepared, x, ActivationGrid), grid_at(prepared, share, FixedGrid)
            if factor is None or prescribed is None or type(result) is not ActivationGrid or result is factor:
                continue
            function = share.all_input_nodes[0]
            if function.target not in POINTWISE:
                continue
            if [grid_at(prepared, source, ActivationGrid) for source in function.all_input_nodes] == [factor]:
                found.append(SelfProduct(factor, function.target, prescribed, result))
    return tuple(found)


def round_alike(product: SelfProduct, step: float | None = None) -> None:
    """Widen the result's grid, by at most a `SCALE_GROWTH` share, so that the fewest products round differently.

    Args:
        step: The scale grows by multiples of this; when absent, to any scale that targets can store.
    """
    scale = product.result.scale
    step = unit_of([scale]) if step is None else step
    scales = scale + step * np.arange(int(scale * SCALE_GROWTH / step) + 1, dtype=np.float64)
    integers = product.integers()
    best = min(scales[scales == representable(scales)], key=lambda candidate: moved(integers, product.unit / candidate))
    product.result.widen(float(best))


def moved(integers: NDArray[np.float64], factor: float) -> int:
    """How many integers, times a factor below 1, lie midway between two whole numbers or up to one factor below it.

    >>> moved(np.array([2.0, 3.0, 4.0, 5.0, -3.0]), 1 / 8)  # 3/8 and 4/8
    3
    """
    below_midway = (0.5 - np.abs(integers) * factor) % 1
    return int((below_midway <= factor).sum())
