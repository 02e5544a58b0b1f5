"""Readers: the function that alone reads a value, if there is one.

A value that only a saturating activation reads is best judged by the activation's result
(`methods.least_error_through`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from pipeline.stages.quantize.graph.capabilities import Operator, aten, operator_of
from pipeline.stages.quantize.ranges.methods import Function
from pipeline.stages.quantize.scales.numbers import Floats

READERS: Mapping[Operator, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        aten.hardswish.default: F.hardswish,
        aten.gelu.default: F.gelu,
        aten.sigmoid.default: torch.sigmoid,
        aten.tanh.default: torch.tanh,
    }
)
"""Elementwise activations with a flat part."""


def reader(value: Node) -> Function | None:
    """The elementwise function that alone reads a value: an activation of `READERS`, or ``x * sigmoid(x)``."""
    users = list(value.users)
    if len(users) == 1 and (function := READERS.get(operator_of(users[0]))) is not None:
        return _on_arrays(function)
    if {user.target for user in users} == {aten.sigmoid.default, aten.mul.Tensor} and len(users) == 2:
        gate, product = sorted(users, key=lambda user: user.target != aten.sigmoid.default)
        if set(product.all_input_nodes) == {value, gate} and list(gate.users) == [product]:
            return _on_arrays(F.silu)
    return None


def _on_arrays(function: Callable[[Tensor], Tensor]) -> Function:
    def apply(values: Floats) -> Floats:
        return np.asarray(function(torch.from_numpy(values)).numpy(), dtype=np.float64)

    return apply
