"""Recurrent layers over sequences ``(S, N, I)``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.core import TargetError

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "linear": lambda x: x,
    "hard_sigmoid": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "sigmoid_hard": lambda x: (0.2 * x + 0.5).clamp(0, 1),
}


def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: Tensor | None = None,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Long short-term memory; gates in the order input, forget, output, cell.

    Returns:
        The hidden states ``(S, N, D·H)``, or ``(1, N, D·H)`` of the final step only, and the final hidden and cell
        states ``(N, D·H)``. Two directions stand side by side, each at its own place in time.
    """
    gate, cell, out = (_activation(name) for name in (recurrent_activation, cell_activation, activation))

    def run(x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, b: Tensor | None, p: Tensor | None) -> _States:
        peeps = (None, None, None) if p is None else p.chunk(3)
        states = []
        for step in functional.linear(x, w_ih, b):
            i, f, o, z = (step + functional.linear(h, w_hh)).chunk(4, dim=-1)
            i, f = gate(_peeped(i, peeps[0], c)), gate(_peeped(f, peeps[1], c))
            z = cell(z)
            if clip is not None:
                z = torch.minimum(torch.maximum(z, -clip), clip)
            c = f * c + i * z
            h = gate(_peeped(o, peeps[2], c)) * out(c)
            states.append(h)
        return torch.stack(states), h, c

    if direction == "bidirectional":
        assert weight_ih_back is not None and weight_hh_back is not None  # noqa: PT018  # the definition asks for both
        (h_forward, h_back), (c_forward, c_back) = initial_h.chunk(2, -1), initial_c.chunk(2, -1)
        forward = run(x, h_forward, c_forward, weight_ih, weight_hh, bias, peephole)
        sequence, h, c = run(x.flip(0), h_back, c_back, weight_ih_back, weight_hh_back, bias_back, peephole_back)
        everything = torch.cat([forward[0], sequence.flip(0)], -1)
        final_h, final_c = torch.cat([forward[1], h], -1), torch.cat([forward[2], c], -1)
    else:
        ordered = x.flip(0) if direction == "reverse" else x
        everything, final_h, final_c = run(ordered, initial_h, initial_c, weight_ih, weight_hh, bias, peephole)
        everything = everything.flip(0) if direction == "reverse" else everything
    return (everything if _flag(output_sequence) else final_h.unsqueeze(0)), final_h, final_c


_States = tuple[Tensor, Tensor, Tensor]


def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: Tensor | None = None,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: Tensor | None = None,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gated recurrent unit, ``o = activation(W_io x + b_io + r * (W_ho h))``; gates in the order reset, output, update.

    Raises:
        TargetError: ``reset_after`` or ``input_bias`` of iOS 18 is used; their published definition is not complete.
    """
    if _flag(reset_after) or input_bias is not None:
        raise TargetError("a GRU with reset_after or input_bias has no complete published definition")
    gate, out = _activation(recurrent_activation), _activation(activation)

    def step(x: Tensor, h: Tensor) -> Tensor:
        (x_r, x_o, x_z), (h_r, h_o, h_z) = x.chunk(3, -1), functional.linear(h, weight_hh).chunk(3, -1)
        z = gate(x_z + h_z)
        return (1 - z) * out(x_o + gate(x_r + h_r) * h_o) + z * h

    return _unrolled(functional.linear(x, weight_ih, bias), initial_h, step, direction, output_sequence)


def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: Tensor | None = None,
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """``h = activation(W_ih x + b + W_hh h)``."""
    out = _activation(activation)

    def step(x: Tensor, h: Tensor) -> Tensor:
        return out(x + functional.linear(h, weight_hh))

    return _unrolled(functional.linear(x, weight_ih, bias), initial_h, step, direction, output_sequence)


def _unrolled(
    x: Tensor, h: Tensor, step: Callable[[Tensor, Tensor], Tensor], direction: str, output_sequence: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A layer with one state, run over the sequence."""
    backwards = direction == "reverse"
    states = []
    for part in x.flip(0) if backwards else x:
        h = step(part, h)
        states.append(h)
    if not _flag(output_sequence):
        return h.unsqueeze(0), h
    everything = torch.stack(states)
    return everything.flip(0) if backwards else everything, h


def _peeped(gate: Tensor, weight: Tensor | None, c: Tensor) -> Tensor:
    return gate if weight is None else gate + weight * c


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name not in _ACTIVATIONS:
        raise TargetError(f"recurrent layers have no published constants for activation {name!r}")
    return _ACTIVATIONS[name]


def _flag(value: Tensor | None) -> bool:
    return value is not None and bool(value)
