"""Bias correction: rounding shifts the mean of each operator's output; the bias takes that shift back.

The analytic form knows weights only; the empirical one also the rounding and clipping of all activations before.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2
(https://arxiv.org/abs/1906.04721).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

BiasCorrection = Literal["none", "analytic", "empirical"]


def mean_shift(
    operator: Callable[..., Tensor], mean_input: Tensor, lost: Tensor, arguments: tuple[Any, ...] = ()
) -> Tensor:
    """What to add to the bias: the mean of ``f(E[x], W - Wq)`` per output channel ``(C,)``.

    It is exact, padding included, because ``f`` is linear in its input.

    Args:
        operator: The convolution or linear ``f(x, weight, bias, *arguments)``.
        mean_input: ``E[x]`` over the calibration samples, ``(1, …)``.
        lost: ``W - Wq``: what rounding took from the weight.

    >>> linear, lost = torch.ops.aten.linear.default, torch.tensor([[0.25, 0.0]])
    >>> mean_shift(linear, torch.tensor([[4.0, 1.0]]), lost)
    tensor([1.])
    """
    return channel_means(operator, operator(mean_input, lost, None, *arguments))


def channel_means(operator: Any, output: Tensor) -> Tensor:
    """Mean of an operator's output per output channel, ``(C,)``: the last axis of a linear layer's, else the second."""
    channel = -1 if operator == torch.ops.aten.linear.default else 1
    return output.movedim(channel, 0).flatten(1).mean(1)


def correct_empirically(float_graph: GraphModule, rounding_graph: GraphModule, inputs: tuple[Tensor, ...]) -> None:
    """Give weighted operators the bias with which their mean output on ``inputs`` is the float graph's, first to last.

    Two forward passes: each operator is corrected as the second pass reaches it, so later ones see corrected inputs.

    Args:
        rounding_graph: The same operators under the same names, simulating rounding; every weighted operator has a
            bias of its own, a parameter named ``<operator>_corrected_bias``, which is changed in place.
    """
    expected: dict[str, Tensor] = {}

    class Expecting(Interpreter):
        def run_node(self, n: Node) -> Any:
            output = super().run_node(n)
            if hasattr(rounding_graph, f"{n.name}_corrected_bias"):
                expected[n.name] = channel_means(n.target, output)
            return output

    class Correcting(Interpreter):
        def run_node(self, n: Node) -> Any:
            output = super().run_node(n)
            if n.name not in expected:
                return output
            shift = expected[n.name] - channel_means(n.target, output)
            getattr(rounding_graph, f"{n.name}_corrected_bias").add_(shift)
            trailing = 0 if n.target == torch.ops.aten.linear.default else output.ndim - 2
            return output + shift.reshape(-1, *[1] * trailing)

    with torch.no_grad():
        Expecting(float_graph).run(*inputs)
        Correcting(rounding_graph).run(*inputs)
