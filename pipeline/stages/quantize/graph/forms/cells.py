"""Recurrent cells as linear layers, chunks and activations, which have integer kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def lstm_cell(
    x: Tensor,
    state: Sequence[Tensor],
    input_weight: Tensor,
    hidden_weight: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Hidden and cell state ``(N, H)`` after one step, as ``torch.nn.LSTMCell`` documents it."""
    hidden, cell = state
    gates = F.linear(x, input_weight, input_bias) + F.linear(hidden, hidden_weight, hidden_bias)
    entry, forget, candidate, exit_gate = gates.chunk(4, -1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(entry) * torch.tanh(candidate)
    return torch.sigmoid(exit_gate) * torch.tanh(cell), cell


def gru_cell(
    x: Tensor,
    hidden: Tensor,
    input_weight: Tensor,
    hidden_weight: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> Tensor:
    """Hidden state ``(N, H)`` after one step, as ``torch.nn.GRUCell`` documents it."""
    reset_x, update_x, candidate_x = F.linear(x, input_weight, input_bias).chunk(3, -1)
    reset_h, update_h, candidate_h = F.linear(hidden, hidden_weight, hidden_bias).chunk(3, -1)
    update = torch.sigmoid(update_x + update_h)
    candidate = torch.tanh(candidate_x + torch.sigmoid(reset_x + reset_h) * candidate_h)
    return candidate + update * (hidden - candidate)


def rnn_cell(activation: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """One step of a plain recurrent cell: ``activation(W x + b + U h + c)``, ``(N, H)``."""

    def step(
        x: Tensor,
        hidden: Tensor,
        input_weight: Tensor,
        hidden_weight: Tensor,
        input_bias: Tensor | None = None,
        hidden_bias: Tensor | None = None,
    ) -> Tensor:
        return activation(F.linear(x, input_weight, input_bias) + F.linear(hidden, hidden_weight, hidden_bias))

    return step
