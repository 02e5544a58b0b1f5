"""Hidden units of LSTM, GRU and RNN layers and cells: which weights belong to one unit.

A unit is removed from every gate, every layer and both directions of a recurrent module at the same position, since
they all share one ``hidden_size`` in torch. Removing it is exact: the rest computes what it did with that unit's state
held at zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from pipeline.stages.prune.labels import Axes, Axis, Labels

RECURRENT = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)


def joined(layer: nn.Module, weights: Mapping[str, Axes], labels: Labels) -> tuple[Axis, Axis]:
    """Join the labels of all that belongs to one hidden unit.

    Args:
        weights: Labels of the layer's parameters, by their names in it.

    Returns:
        Labels of the hidden units and of the input features.
    """
    inputs = next(axes[1] for name, axes in weights.items() if name.startswith("weight_ih"))
    states = next(axes for name, axes in weights.items() if name.startswith("weight_hh"))
    if getattr(layer, "proj_size", 0):
        for axes in weights.values():
            labels.keep(axes[0], "its hidden state is projected (proj_size)")
        return states[0], inputs
    units = states[1]
    for name, axes in weights.items():
        labels.join_rows(np.concatenate([units[None], axes[0].reshape(-1, len(units))]), "")
        if name.startswith("weight_hh"):
            labels.join(units, axes[1], "")
    return units, inputs
