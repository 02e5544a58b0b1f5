"""AdaRound: round each weight up or down so that the layer's output is closest, not to the nearest grid value.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization" (https://arxiv.org/abs/2004.10568):
layer by layer, on unlabelled samples; each layer reads the outputs of the rounded layers before it. Only some positions
of a layer's output are used. Each is a row of input values, so a convolution becomes a matrix product and a step costs
the same at any resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional as F

from pipeline.machine.memory import require_memory
from pipeline.stages.quantize.graph.capabilities import aten, kind_of
from pipeline.stages.quantize.graph.nodes import argument, channel_axis, group_count, key_of, set_tensor, tensor_of
from pipeline.stages.quantize.improve.correction import Correcting, channel_means
from pipeline.stages.quantize.scales.grids import PerChannelWeightGrid
from pipeline.stages.quantize.scales.numbers import WEIGHT_QMAX

POSITIONS = 2048
"""Output positions that are used of a layer, drawn evenly from all samples."""
ITERATIONS, ROWS, LEARNING_RATE = 500, 256, 0.02
GAMMA, ZETA = -0.1, 1.1  # the paper's equation 23 stretches the sigmoid, so that it reaches 0 and 1
PRESSURE = 0.01  # weight of the regulariser, the paper's lambda

Activation = Callable[[Tensor], Tensor]


def round_adaptively(
    float_graph: GraphModule, rounding_graph: GraphModule, inputs: tuple[Tensor, ...], *, correct_biases: bool
) -> dict[str, Tensor]:
    """Set the weights of convolutions and linear layers to the grid values that AdaRound chooses, in order.

    A transposed convolution, and a weight that several operators read, keep their nearest grid values.

    Args:
        rounding_graph: A copy that simulates rounding; its weights are changed in place.
        correct_biases: Whether each operator's bias compensates for the remaining mean error before the next one is
            rounded.

    Returns:
        The chosen weights by the operator's key.
    """
    _require_memory(rounding_graph)
    own = {key_of(node) for node in rounding_graph.graph.nodes if _weight_node(node) is not None}
    with torch.no_grad():
        seen = _Seeing(float_graph, own)
        seen.run(*inputs)
        rounding = _Rounding(rounding_graph, seen.means if correct_biases else {}, seen.positions, seen.targets)
        rounding.run(*inputs)
    return rounding.chosen


def _require_memory(graph: GraphModule) -> None:
    """The chosen positions of every operator's output are kept at once, and of one operator's input."""
    shapes = [
        tensor_of(graph, weight).shape for node in graph.graph.nodes if (weight := _weight_node(node)) is not None
    ]
    outputs = sum(shape[0] for shape in shapes)
    inputs = max((math.prod(shape[1:]) for shape in shapes), default=0)
    require_memory("quantize: adaround", 4 * POSITIONS * (outputs + inputs), fix="remove adaround")


def up_or_down(
    weight: Tensor,
    scales: Tensor,
    rows: Tensor,
    targets: Tensor,
    bias: Tensor | float = 0.0,
    *,
    activation: Activation = lambda values: values,
    iterations: int = ITERATIONS,
    seed: int = 0,
) -> Tensor:
    """Grid values around a weight with which ``activation(rows @ values + bias)`` comes closest to the targets.

    Equations 21 to 25 of the paper: ``h = clip(sigmoid(v) (zeta - gamma) + gamma, 0, 1)`` is learned between the
    grid value below (0) and the one above (1), and pushed to either by ``1 - |2h - 1|^beta`` as beta falls to 2.

    Args:
        weight: Float weight ``(G, O, K)``: groups, outputs and inputs of a group.
        scales: Steps ``(G, O, 1)`` of the weight's grid.
        rows: Input values as the integer network sees them, ``(G, N, K)``.
        targets: The float network's outputs before the activation, ``(G, N, O)``.
        bias: Broadcasts to the targets.
        activation: What follows the layer: only errors that pass it count.
        seed: Draws the rows of each step.
    """
    below = torch.floor(weight / scales)
    share = (weight / scales - below).clamp(0.01, 0.99)
    v = torch.logit((share - GAMMA) / (ZETA - GAMMA)).requires_grad_()
    wanted = activation(targets)
    power = wanted.var().clamp_min(1e-12) if wanted.numel() > 1 else torch.ones(())
    optimizer = torch.optim.Adam([v], LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    warm_up = iterations // 5  # without the regulariser
    for step in range(iterations):
        some = torch.randint(rows.shape[1], (min(ROWS, rows.shape[1]),), generator=generator)
        h = (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
        values = scales * (below + h).clamp(-WEIGHT_QMAX, WEIGHT_QMAX)
        loss = (activation(rows[:, some] @ values.transpose(1, 2) + bias) - wanted[:, some]).square().mean() / power
        if step >= warm_up:
            progress = (step - warm_up) / (iterations - warm_up)
            beta = 2 + 9 * (1 + math.cos(math.pi * progress))  # from 20 to 2
            loss = loss + PRESSURE * (1 - (2 * h - 1).abs().pow(beta)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return scales * (below + (v.detach() >= 0)).clamp(-WEIGHT_QMAX, WEIGHT_QMAX)


class _Seeing(Interpreter):
    """Runs the float graph, and keeps some positions of each operator's output and its mean."""

    def __init__(self, graph: GraphModule, operators: set[str]) -> None:
        super().__init__(graph)
        self._operators = operators
        self._generator = torch.Generator().manual_seed(0)
        self.positions: dict[str, tuple[Tensor, ...]] = {}
        self.targets: dict[str, Tensor] = {}
        self.means: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        output = super().run_node(n)
        if (key := key_of(n)) in self._operators:
            channels_last = output.movedim(channel_axis(n.target), -1)
            shape = channels_last.shape[:-1]
            chosen = torch.randint(math.prod(shape), (min(POSITIONS, math.prod(shape)),), generator=self._generator)
            self.positions[key] = torch.unravel_index(chosen, shape)
            self.targets[key] = channels_last[self.positions[key]]
            self.means[key] = channel_means(n.target, output)
        return output


class _Rounding(Correcting):
    """Runs the rounding graph, and rounds each operator's weight before it runs."""

    def __init__(
        self,
        graph: GraphModule,
        expected: dict[str, Tensor],
        positions: dict[str, tuple[Tensor, ...]],
        targets: dict[str, Tensor],
    ) -> None:
        super().__init__(graph, expected)
        self._positions, self._targets = positions, targets
        self.chosen: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        if key_of(n) in self._positions:
            self._round(n)
        return super().run_node(n)

    def _round(self, n: Node) -> None:
        source = _weight_node(n)
        assert source is not None
        (x, _, bias, *_), _ = self.fetch_args_kwargs_from_env(n)
        key, rounded = key_of(n), n.all_input_nodes[1]
        weight, grid = tensor_of(self._graph, source), self._graph.get_submodule(str(rounded.target))
        assert isinstance(grid, PerChannelWeightGrid)
        groups = group_count(n)
        rows = rows_at(n, x, weight, self._positions[key], groups)

        def grouped(values: Tensor) -> Tensor:
            """``(P, O)`` as ``(G, P, O / G)``."""
            return values.reshape(len(values), groups, -1).transpose(0, 1)

        with torch.enable_grad():
            values = up_or_down(
                weight.reshape(groups, len(weight) // groups, -1),
                grid.scales.reshape(groups, -1, 1),
                rows,
                grouped(self._targets[key]),
                grouped(bias[None]),
                activation=_clamp_after(n),
            )
        self.chosen[key] = values.reshape(weight.shape)
        set_tensor(self._graph, source, self.chosen[key])
        self.env[rounded] = self.chosen[key]


def rows_at(node: Node, x: Tensor, weight: Tensor, positions: tuple[Tensor, ...], groups: int) -> Tensor:
    """The input values ``(G, P, K)`` that a convolution or linear layer multiplies its weight with at some positions.

    Args:
        x: The operator's input.
        weight: Its weight ``(O, I, *kernel)``.
        positions: Indices of the output without its channels: ``(P,)`` each.
    """
    if node.target == aten.linear.default:
        return x[positions][None]
    spatial = x.ndim - 2
    stride, padding, dilation = (
        _per_axis(argument(node, index, default), spatial) for index, default in ((3, 1), (4, 0), (5, 1))
    )
    padded = F.pad(x, [side for amount in reversed(padding) for side in (amount, amount)])
    kernel = weight.shape[2:]
    sample, *places = (index.reshape(-1, *[1] * spatial) for index in positions)
    taps = []
    for axis, place in enumerate(places):
        shape = [1] * (spatial + 1)
        shape[axis + 1] = -1
        taps.append(place * stride[axis] + torch.arange(kernel[axis]).reshape(shape) * dilation[axis])
    patches = padded.movedim(1, -1)[(sample, *taps)]  # (P, *kernel, C)
    patches = patches.movedim(-1, 1).reshape(len(sample), groups, -1)
    return patches.transpose(0, 1)


def _per_axis(value: Any, spatial: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [int(entry) for entry in (values * spatial if len(values) == 1 else values)]


def _weight_node(node: Node) -> Node | None:
    """The node of a weight that AdaRound can treat, of an operator in a prepared graph."""
    if node.target not in (aten.conv1d.default, aten.conv2d.default, aten.linear.default):
        return None
    grid = node.all_input_nodes[1]
    if grid.op != "call_module" or len(grid.users) > 1:
        return None
    source = grid.all_input_nodes[0]
    return source if source.op == "get_attr" and len(source.users) == 1 else None


def _clamp_after(node: Node) -> Activation:
    """The clamp that alone reads an operator's output; else the identity."""
    user = next(iter(node.users))
    if len(node.users) > 1 or kind_of(user) != "clamp":
        return lambda values: values
    function: Any = user.target
    return lambda values: function(values, *user.args[1:], **user.kwargs)
