"""Equalisation: channels of one tensor share one scale, so a channel far smaller than the largest loses its precision.

Scaling channel c up before, and the next operator's weights for it down, leaves the float function as it was (Nagel
et al. 2019, section 4.1, https://arxiv.org/abs/1906.04721; with activations in place of weights it is SmoothQuant,
Xiao et al. 2022, https://arxiv.org/abs/2211.10438). Only what ReLU or nothing stands between is touched: a clamp at 6
does not commute with a scale.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from pipeline.stages.quantize.annotator import tensor_of

aten = torch.ops.aten

LIMIT = 1e3  # no channel is scaled by more, so that one which hardly fires is not blown up


@dataclass(frozen=True, slots=True)
class Pair:
    """Two convolutions or linear layers with nothing, or a ReLU, between them and nothing else beside."""

    first: Node
    second: Node


def pairs(graph: GraphModule) -> list[Pair]:
    """All pairs whose channels can be scaled; weights that several operators read are left alone."""
    found = []
    for node in graph.graph.nodes:
        if node.target not in (aten.conv1d.default, aten.conv2d.default, aten.linear.default):
            continue
        producer = node.all_input_nodes[0]
        if producer.target == aten.relu.default and len(producer.users) == 1:
            producer = producer.all_input_nodes[0]
        same_kind = producer.target == node.target
        if same_kind and len(producer.users) == 1 and all(_owns_parameters(each) for each in (producer, node)):
            found.append(Pair(producer, node))
    return [pair for pair in found if _groups(pair.second) in (1, len(tensor_of(graph, _argument(pair.second, 1))))]


def equalised(graph: GraphModule, peaks: Mapping[str, Tensor]) -> GraphModule:
    """A copy of a canonical graph that computes the same with channels of like range.

    Args:
        peaks: Largest magnitude of each input channel ``(C,)`` of the pairs' second operators, by node name.
    """
    result = copy.deepcopy(graph)
    for pair in pairs(result):
        weight = tensor_of(result, _argument(pair.second, 1))
        factors = channel_factors(peaks[pair.second.name], _reach(weight, _groups(pair.second)))
        _scale(result, _argument(pair.first, 1), factors, axis=0)
        if (bias := _argument(pair.first, 2)) is not None:
            _scale(result, bias, factors, axis=0)
        _scale(result, _argument(pair.second, 1), 1 / factors, axis=1 if _groups(pair.second) == 1 else 0)
    return result


def input_peaks(graph: GraphModule, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Largest magnitude of each input channel of the pairs' second operators, on one batch of inputs."""
    seconds = {pair.second for pair in pairs(graph)}
    found: dict[str, Tensor] = {}

    class Watching(Interpreter):
        def run_node(self, n: Node) -> Any:
            if n in seconds:
                channel = -1 if n.target == aten.linear.default else 1
                found[n.name] = self.env[n.all_input_nodes[0]].abs().movedim(channel, 0).flatten(1).amax(1)
            return super().run_node(n)

    with torch.no_grad():
        Watching(graph).run(*inputs)
    return found


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
    return centred.exp().clamp(1 / LIMIT, LIMIT)


def _reach(weight: Tensor, groups: int) -> Tensor:
    """The largest weight that reads each input channel."""
    return weight.abs().movedim(1 if groups == 1 else 0, 0).flatten(1).amax(1)


def _scale(graph: GraphModule, node: Node, factors: Tensor, axis: int) -> None:
    value = tensor_of(graph, node)
    shape = [1] * value.ndim
    shape[axis] = -1
    owner, _, name = str(node.target).rpartition(".")
    scaled = nn.Parameter(value * factors.reshape(shape), requires_grad=False)
    setattr(graph.get_submodule(owner), name, scaled)


def _argument(node: Node, index: int) -> Any:
    return node.args[index] if len(node.args) > index else None


def _groups(node: Node) -> int:
    groups = _argument(node, 6)
    return 1 if groups is None else int(groups)


def _owns_parameters(node: Node) -> bool:
    parameters = [value for value in (_argument(node, 1), _argument(node, 2)) if value is not None]
    return all(value.op == "get_attr" and len(value.users) == 1 for value in parameters)
