"""Hidden units of LSTM, GRU and RNN layers: how the dependency graph sees such a layer, and their physical removal.

A unit is removed from every layer and both directions of a recurrent module at the same position, since they all share
one ``hidden_size`` in torch. Removing it is exact: the rest computes what it did with that unit's state held at zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Recurrent = nn.modules.rnn.RNNBase
RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)


class _OneNode(torch.autograd.Function):
    """What ties a layer's outputs to its input in autograd's graph, in place of the many operators inside."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG004  torch's signature
        _input, _weight, *outputs = tensors
        return tuple(output.clone() for output in outputs)


@contextmanager
def traced_as_one_node(module: nn.Module) -> Iterator[None]:
    """Within, every recurrent layer of ``module`` is one node in autograd's graph."""
    layers = [part for part in module.modules() if isinstance(part, Recurrent)]
    for layer in layers:
        layer.forward = _opaque(layer)  # on the instance, and taken off again below
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _opaque(layer: nn.Module) -> Any:
    run = layer.forward

    def forward(x: Tensor | PackedSequence, state: Any = None) -> Any:
        if isinstance(x, PackedSequence):
            return run(x, state)
        with torch.no_grad():
            output, final = run(x, state)
        states = final if isinstance(final, tuple) else (final,)
        output, *states = _OneNode.apply(x, layer.weight_ih_l0, output, *states)  # type: ignore[no-untyped-call]
        return output, tuple(states) if isinstance(final, tuple) else states[0]

    return forward


class HiddenUnits(tp.BasePruningFunc):  # type: ignore[misc]  # torch-pruning is untyped
    """Tells torch-pruning how the channels of a recurrent layer are counted and removed.

    The output has ``hidden_size`` channels per direction, one direction after the other.
    """

    TARGET_MODULES = Recurrent

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        """Remove hidden units from every layer and direction."""
        gone = {index % layer.hidden_size for index in idxs}
        kept = torch.tensor([unit for unit in range(layer.hidden_size) if unit not in gone])
        for name, weight in list(layer.named_parameters()):
            gates = weight.view(-1, layer.hidden_size, *weight.shape[1:]).index_select(1, kept)
            values = gates.flatten(0, 1)
            if name.startswith("weight_hh"):
                values = values.index_select(1, kept)
            elif name.startswith("weight_ih") and not name.startswith("weight_ih_l0"):  # reads the layer below
                directions = [kept + direction * layer.hidden_size for direction in range(_directions(layer))]
                values = values.index_select(1, torch.cat(directions))
            setattr(layer, name, nn.Parameter(values.detach().clone()))
        layer.hidden_size = len(kept)
        return layer

    def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        """Remove input features."""
        gone = set(idxs)
        kept = torch.tensor([channel for channel in range(layer.input_size) if channel not in gone])
        for name, weight in list(layer.named_parameters()):
            if name.startswith("weight_ih_l0"):
                setattr(layer, name, nn.Parameter(weight.index_select(1, kept).detach().clone()))
        layer.input_size = len(kept)
        return layer

    def get_out_channels(self, layer: Any) -> int:
        return int(layer.hidden_size) * _directions(layer)

    def get_in_channels(self, layer: Any) -> int:
        return int(layer.input_size)

    def get_out_channel_groups(self, layer: Any) -> int:
        """A unit is removed from both directions: its channels are grouped like a grouped convolution's."""
        return _directions(layer)

    def get_in_channel_groups(self, layer: Any) -> int:  # noqa: ARG002  torch-pruning's signature
        return 1


PRUNERS = dict.fromkeys(RECURRENT, HiddenUnits())


def saliency(layer: nn.Module, power: int) -> Tensor:
    """Importance of each output channel by the weights of its own gates: ``(directions * hidden_size,)``.

    Directions of one unit count together, as do all layers of the module.
    """
    assert isinstance(layer, Recurrent)
    total = torch.zeros(layer.hidden_size)
    for name, weight in layer.named_parameters():
        if name.startswith("weight"):
            gates = weight.detach().view(-1, layer.hidden_size, weight.shape[1])
            total += gates.abs().pow(power).sum((0, 2))
    return total.repeat(_directions(layer))


def _directions(layer: Any) -> int:
    return 2 if layer.bidirectional else 1
