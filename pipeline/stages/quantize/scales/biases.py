"""Biases on the accumulator's grid, so that every target stores the program's integers.

An integer kernel adds the bias to an int32 accumulator whose unit is ``s_x * s_w``, so each target rounds biases to
that unit. If the program kept them unrounded, the difference of up to half a unit would move one value in several
hundred by a step in every layer: on the demo's network, 40 instead of 54 dB of parity.

Core ML stores biases in float16 instead. They are therefore rounded to float16 first and then to the unit, which is
finer almost everywhere. Both numbers then represent the same bias, within 2^-12 of the original's size.

Simulations round biases exactly as programs do. An image's background repeats one value in thousands of places. If
that value is close to a tie, the last bit of a bias moves it by a step everywhere, and later layers no longer receive
what they were corrected for. This once cost the output of a MobileNetV3 1.6 dB.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pipeline.stages.quantize.graph.capabilities import WEIGHTED
from pipeline.stages.quantize.graph.nodes import argument, set_tensor, tensor_of
from pipeline.stages.quantize.scales.grids import ActivationGrid, FixedGrid, PerChannelWeightGrid

MOST_UNITS = 2**30  # a larger integer would leave the products no room in int32


def round_biases(program: GraphModule) -> None:
    """Replace the bias of every operator with dequantized activation and weight by ``round(b / u) * u``, u = s_x s_w.

    A bias that would need more than `MOST_UNITS` units is left as it is; so are biases that several operators share.
    """
    quantized = torch.ops.quantized_decomposed
    for node in program.graph.nodes:
        if node.target not in WEIGHTED or argument(node, 2) is None:
            continue
        activation, weight, bias = node.args[:3]
        from_integers = (activation.target, weight.target) == (
            quantized.dequantize_per_tensor.default,
            quantized.dequantize_per_channel.default,
        )
        if from_integers and bias.op == "get_attr" and len(bias.users) == 1:
            units = activation.args[1] * tensor_of(program, weight.args[1])
            set_tensor(program, bias, on_grid(tensor_of(program, bias), units))


def rounded_bias(prepared: GraphModule, operator: Node, bias: Tensor) -> Tensor:
    """The value that `round_biases` will give a bias of this operator once the prepared graph is converted."""
    return on_grid(bias, accumulator_units(prepared, operator))


def accumulator_units(prepared: GraphModule, operator: Node) -> Tensor:
    """The units of a weighted operator's accumulator in a prepared graph: one per scale of its weight."""
    activation, weight = (prepared.get_submodule(str(source.target)) for source in operator.all_input_nodes[:2])
    assert isinstance(activation, ActivationGrid | FixedGrid)
    assert isinstance(weight, PerChannelWeightGrid)
    return float(activation.scale) * weight.scales


def on_grid(bias: Tensor, units: Tensor) -> Tensor:
    """``round(float16(b) / u) * u`` per channel, ``(C,) float32``; b itself beyond `MOST_UNITS` units.

    Args:
        units: ``(C,)``, or fewer where groups of a transposed convolution share them.

    >>> on_grid(torch.tensor([0.30, -0.9, 1e9]), torch.tensor([0.25, 0.5, 0.5])).tolist()
    [0.25, -1.0, 1000000000.0]
    """
    unit = units.double().repeat(len(bias) // len(units))
    steps = torch.round(bias.half().double() / unit)
    return torch.where(steps.abs() <= MOST_UNITS, (steps * unit).float(), bias)
