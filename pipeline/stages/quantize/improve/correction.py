"""Bias correction: rounding shifts the mean of each operator's output; the bias compensates for that shift.

The analytic form accounts for the weights only; the empirical one also for the rounding and clipping of all earlier
activations.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2
(https://arxiv.org/abs/1906.04721).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from pipeline.stages.quantize.graph.nodes import channel_axis, key_of
from pipeline.stages.quantize.scales.biases import rounded_bias

BiasCorrection = Literal["none", "analytic", "empirical"]


def mean_shift(
    operator: Callable[..., Tensor], mean_input: Tensor, lost: Tensor, arguments: tuple[Any, ...] = ()
) -> Tensor:
    """What to add to the bias: the mean of ``f(E[x], W - Wq)`` per output channel ``(C,)``.

    It is exact, padding included, because ``f`` is linear in its input.

    Args:
        operator: The convolution or linear ``f(x, weight, bias, *arguments)``.
        mean_input: ``E[x]`` over the calibration samples, ``(1, …)``.
        lost: ``W - Wq``: what rounding removed from the weight.

    >>> linear, lost = torch.ops.aten.linear.default, torch.tensor([[0.25, 0.0]])
    >>> mean_shift(linear, torch.tensor([[4.0, 1.0]]), lost)
    tensor([1.])
    """
    return channel_means(operator, operator(mean_input, lost, None, *arguments))


def channel_means(operator: Any, output: Tensor) -> Tensor:
    """Mean of an operator's output per output channel, ``(C,)``."""
    channel = channel_axis(operator) % output.ndim
    return output.mean([axis for axis in range(output.ndim) if axis != channel])


def output_means(graph: GraphModule, operators: Iterable[str], inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Mean output per channel ``(C,)`` of some operators on some inputs, by the operators' keys."""
    wanted, found = set(operators), dict[str, Tensor]()

    class Watching(Interpreter):
        def run_node(self, n: Node) -> Any:
            output = super().run_node(n)
            if key_of(n) in wanted:
                found[key_of(n)] = channel_means(n.target, output)
            return output

    with torch.no_grad():
        Watching(graph).run(*inputs)
    return found


class Correcting(Interpreter):
    """Runs a graph that simulates rounding, and corrects each operator's bias as it is reached.

    Later operators therefore see corrected inputs. After one run over a set of inputs, every operator's mean output on
    them is the expected one, up to the rounding of its bias.

    Args:
        graph: Every operator to correct has a bias of its own, a parameter called `bias_name`, changed in place.
        expected: The float graph's mean outputs on the same inputs (`output_means`).
    """

    def __init__(self, graph: GraphModule, expected: Mapping[str, Tensor]) -> None:
        super().__init__(graph)
        self._graph, self._expected = graph, expected

    def run_node(self, n: Node) -> Any:
        output = super().run_node(n)
        if key_of(n) not in self._expected:
            return output
        bias = self._graph.get_parameter(bias_name(key_of(n)))
        exact = bias + self._expected[key_of(n)] - channel_means(n.target, output)
        corrected = rounded_bias(self._graph, n, exact)
        shift = corrected - bias
        bias.copy_(corrected)
        trailing = 0 if channel_axis(n.target) == -1 else output.ndim - 2
        return output + shift.reshape(-1, *[1] * trailing)


def bias_name(operator: str) -> str:
    """Name of the bias that corrections change, for the operator with this key."""
    return f"{operator}_corrected_bias"
