"""Recurrent layers and cells."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.fuzz.blocks.kind import Compute, DoesNotFit, kind
from tests.fuzz.spec import Value

CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}


MOST_STEPS = 16
"""Unrolled, a longer sequence makes thousands of operators."""


def _check_length(x: Value) -> None:
    if x.shape[0] > MOST_STEPS:
        raise DoesNotFit


def _layer(cell: str, inputs: int, hidden: int, **settings: Any) -> nn.Module:
    if cell == "rnn_relu":
        return nn.RNN(inputs, hidden, nonlinearity="relu", **settings)
    return {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[cell](inputs, hidden, **settings)


@kind(
    "tokens",
    gives="tokens",
    cell=("lstm", "gru", "rnn", "rnn_relu"),
    hidden=(6, 8),
    layers=(1, 2),
    bidirectional=(False, True),
    batch_first=(True, False),
    bias=(True, False),
)
def recurrent(
    x: Value, cell: str, hidden: int, layers: int, bidirectional: bool, batch_first: bool, bias: bool
) -> nn.Module:
    _check_length(x)
    layer = _layer(
        cell, x.channels, hidden, num_layers=layers, bidirectional=bidirectional, batch_first=batch_first, bias=bias
    )
    if batch_first:
        return Compute(lambda self, y: self.layer(y)[0], layer=layer)
    return Compute(lambda self, y: self.layer(y.transpose(0, 1))[0].transpose(0, 1), layer=layer)


@kind(
    "tokens",
    gives="vector",
    cell=("lstm", "gru", "rnn"),
    take=("last", "hidden", "hidden_index", "both_directions", "given_state"),
)
def recurrent_end(x: Value, cell: str, take: str) -> nn.Module:
    _check_length(x)
    layer = _layer(cell, x.channels, 6, batch_first=True, bidirectional=take == "both_directions")

    def forward(self: Any, y: Tensor) -> Tensor:
        if take == "given_state":
            state = torch.zeros(1, y.shape[0], 6)
            every, final = self.layer(y, (state, state) if cell == "lstm" else state)
        else:
            every, final = self.layer(y)
        hidden = final[0] if cell == "lstm" else final
        match take:
            case "hidden":
                return hidden.squeeze(0)
            case "hidden_index":
                return hidden[-1]
            case "both_directions":
                return torch.cat((hidden[0], hidden[1]), 1)
        return every[:, -1]

    return Compute(forward, layer=layer)


@kind("tokens", gives="vector", cell=("lstm", "gru", "rnn"), start=("zeros", "new_zeros", "none"))
def cell_loop(x: Value, cell: str, start: str) -> nn.Module:
    """A cell in a Python loop over the steps."""
    _check_length(x)

    def forward(self: Any, y: Tensor) -> Tensor:
        n = y.shape[0]
        state: Any = None
        if start != "none":
            state = torch.zeros(n, 6) if start == "zeros" else y.new_zeros(n, 6)
        state = (state, state) if cell == "lstm" and state is not None else state
        for step in range(y.shape[1]):
            state = self.cell(y[:, step], state)
        return state[0] if cell == "lstm" else state

    return Compute(forward, cell=CELLS[cell](x.channels, 6))


@kind("vector", "vector", gives="vector", pair="any", cell=("lstm", "gru", "rnn"))
def cell_step(x: Value, y: Value, cell: str) -> nn.Module:
    """One step of a streaming model: the state comes in and goes out."""

    def forward(self: Any, a: Tensor, state: Tensor) -> Tensor:
        if cell == "lstm":
            return torch.cat(self.cell(a, (state, state * 0.5)), 1)
        return self.cell(a, state)

    return Compute(forward, cell=CELLS[cell](x.channels, y.channels))


@kind("tokens", gives="tokens", form=("elman", "scan", "moving_average"))
def recurrence_by_hand(x: Value, form: str) -> nn.Module:
    c = x.channels
    _check_length(x)

    def forward(self: Any, y: Tensor) -> Tensor:
        state, states = torch.zeros_like(y[:, 0]), []
        for step in range(y.shape[1]):
            value = y[:, step]
            if form == "elman":
                state = torch.tanh(self.inner(state) + self.outer(value))
            elif form == "scan":
                state = state * self.decay.sigmoid() + value
            else:
                state = 0.9 * state + 0.1 * value
            states.append(state)
        return torch.stack(states, 1)

    return Compute(forward, inner=nn.Linear(c, c), outer=nn.Linear(c, c), decay=nn.Parameter(torch.zeros(c)))
