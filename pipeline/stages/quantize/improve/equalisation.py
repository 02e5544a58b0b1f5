"""Equalisation: the channels of a tensor share one scale, so a channel far smaller than the largest loses precision.

Scaling a channel up where it is produced, and the weights that read it down, does not change the float function (Nagel
et al. 2019, section 4.1, https://arxiv.org/abs/1906.04721). Only layers with nothing or a ReLU between them are
treated: a clamp at 6 does not commute with a scale. If a layer norm produces the tensor, this is SmoothQuant with alpha
0.5 (Xiao et al. 2022, https://arxiv.org/abs/2211.10438): the norm's gain and offset absorb the factors.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from pipeline.stages.quantize.graph.capabilities import aten
from pipeline.stages.quantize.graph.nodes import argument, channel_axis, group_count, key_of, set_tensor, tensor_of
from pipeline.stages.quantize.scales.numbers import affine_parameters, channel_scales, fake_quantize, rounded
from pipeline.tasks.comparison import sqnr_db

FACTOR_LIMIT = 1e3  # no channel is scaled by more, so that a nearly inactive one does not grow without bound
GAIN_DB = 1.0  # a pair that gains less is not worth another calibration
EQUALISED = (aten.conv1d.default, aten.conv2d.default, aten.linear.default)


@dataclass(frozen=True, slots=True)
class Pair:
    """An operator whose channels can be scaled, and all operators that read them, with nothing or a ReLU between."""

    first: Node
    seconds: tuple[Node, ...]

    @property
    def smooths(self) -> bool:
        """Whether a layer norm absorbs the factors (SmoothQuant)."""
        return bool(self.first.target == aten.layer_norm.default)


def pairs(graph: GraphModule) -> list[Pair]:
    """All pairs, in order; parameters that several operators read are left alone."""
    found = []
    for node in graph.graph.nodes:
        value = _relu_after(node)
        seconds = tuple(value.users)
        if not seconds or any(second.all_input_nodes[0] is not value for second in seconds):
            continue
        if node.target == aten.layer_norm.default:
            one_axis = len(node.args[1]) == 1 and argument(node, 2) is not None
            fits = one_axis and all(second.target == aten.linear.default for second in seconds)
        else:
            fits = node.target in EQUALISED and [second.target for second in seconds] == [node.target]
        if fits and all(_owns_parameters(each) for each in (node, *seconds)):
            found.append(Pair(node, seconds))
    return [pair for pair in found if all(group_count(each) in (1, len(_weight(graph, each))) for each in pair.seconds)]


def gaining_factors(
    graph: GraphModule, inputs: tuple[Tensor, ...], *, layers: bool = True, norms: bool = True
) -> dict[str, Tensor]:
    """Factors ``(C,)`` of the pairs that gain by them, by the first operator's key.

    Each pair is judged alone: by the SQNR of its second operators' outputs when their input and weights are rounded,
    with the factors and without.

    Args:
        layers: Whether to scale the outputs of convolutions and linear layers.
        norms: Whether to scale the outputs of layer norms.
    """
    by_second = {pair.seconds[0]: pair for pair in pairs(graph) if (norms if pair.smooths else layers)}
    if not by_second:
        return {}
    found: dict[str, Tensor] = {}

    class Judging(Interpreter):
        def run_node(self, n: Node) -> Any:
            if n in by_second:
                pair = by_second[n]
                x = self.env[n.all_input_nodes[0]]
                weights = [_weight(graph, second) for second in pair.seconds]
                reach = [_reach(weight, group_count(n)) for weight in weights]
                factors = channel_factors(_peaks(x, n), torch.stack(reach).amax(0))
                if _noise_db(n, x, weights, factors) < _noise_db(n, x, weights, torch.ones_like(factors)) - GAIN_DB:
                    found[key_of(pair.first)] = factors
            return super().run_node(n)

    with torch.no_grad():
        Judging(graph).run(*inputs)
    return found


def equalised(graph: GraphModule, factors: Mapping[str, Tensor]) -> GraphModule:
    """A copy of a canonical graph that computes the same, with the channels of some pairs scaled.

    Args:
        factors: Of each channel ``(C,)``, by the key of the pair's first operator.
    """
    result = copy.deepcopy(graph)
    for pair in pairs(result):
        if key_of(pair.first) not in factors:
            continue
        own = factors[key_of(pair.first)]
        for index in (2, 3) if pair.smooths else (1, 2):
            if (parameter := argument(pair.first, index)) is not None:
                _scale(result, parameter, own, axis=0)
        for second in pair.seconds:
            _scale(result, argument(second, 1), 1 / own, axis=1 if group_count(second) == 1 else 0)
    return result


def channel_factors(peaks: Tensor, reach: Tensor) -> Tensor:
    """``sqrt(w / a)``, scaled to a geometric mean of 1: afterwards ``a`` and ``w`` have the same ratios of channels.

    Args:
        peaks: Largest magnitude ``a`` of each channel ``(C,)``.
        reach: Largest weight ``w`` that reads each channel ``(C,)``.

    >>> channel_factors(torch.tensor([1.0, 16.0]), torch.tensor([1.0, 1.0]))
    tensor([2.0000, 0.5000])
    """
    usable = (peaks > 0) & (reach > 0)
    if not usable.any():
        return torch.ones_like(peaks)
    logarithms = torch.where(usable, 0.5 * (reach.clamp_min(1e-30).log() - peaks.clamp_min(1e-30).log()), 0.0)
    centred = torch.where(usable, logarithms - logarithms[usable].mean(), 0.0)
    return centred.exp().clamp(1 / FACTOR_LIMIT, FACTOR_LIMIT)


def _noise_db(node: Node, x: Tensor, weights: list[Tensor], factors: Tensor) -> float:
    """Noise in dB over the signal when the scaled input and the weights that read it are rounded."""
    operator: Any = node.target
    groups = group_count(node)
    scaled = x * _along(factors, x.ndim, channel_axis(operator))
    scale, zero_point = affine_parameters(float(scaled.min()), float(scaled.max()))
    exact, tested = [], []
    for weight in weights:
        other = weight / _along(factors, weight.ndim, 1 if groups == 1 else 0)
        arguments = (None, *node.args[3:])
        exact.append(operator(x, weight, *arguments).flatten())
        on_grid = fake_quantize(other, channel_scales(other, 0), 0)
        tested.append(operator(rounded(scaled, scale, zero_point), on_grid, *arguments).flatten())
    return -sqnr_db(torch.cat(exact), torch.cat(tested))


def _relu_after(node: Node) -> Node:
    """The ReLU that alone reads a value; else the value itself."""
    user = next(iter(node.users), None)
    return user if user is not None and len(node.users) == 1 and user.target == aten.relu.default else node


def _peaks(x: Tensor, second: Node) -> Tensor:
    """The largest magnitude of each channel that an operator reads."""
    channel = channel_axis(second.target) % x.ndim
    return x.abs().amax([axis for axis in range(x.ndim) if axis != channel])


def _reach(weight: Tensor, groups: int) -> Tensor:
    """The largest weight that reads each input channel."""
    return weight.abs().movedim(1 if groups == 1 else 0, 0).flatten(1).amax(1)


def _scale(graph: GraphModule, node: Node, factors: Tensor, axis: int) -> None:
    value = tensor_of(graph, node)
    set_tensor(graph, node, value * _along(factors, value.ndim, axis))


def _along(factors: Tensor, ndim: int, axis: int) -> Tensor:
    """``(C,)`` with enough axes to multiply one axis of a tensor."""
    shape = [1] * ndim
    shape[axis] = -1
    return factors.reshape(shape)


def _weight(graph: GraphModule, node: Node) -> Tensor:
    return tensor_of(graph, node.all_input_nodes[1])


def _owns_parameters(node: Node) -> bool:
    return all(value.op == "get_attr" and len(value.users) == 1 for value in node.all_input_nodes[1:])
