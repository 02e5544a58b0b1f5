"""Calibration: one run of the float graph over the samples, and the programs that its statistics make."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from pipeline.core import StageError
from pipeline.data import SampleSet
from pipeline.stages.quantize.annotator import Int8Quantizer, Scheme, layer_name, plan, rule_of, tensor_of
from pipeline.stages.quantize.biases import round_biases
from pipeline.stages.quantize.capabilities import RULE_OF
from pipeline.stages.quantize.correction import BiasCorrection, correct_empirically, mean_shift
from pipeline.stages.quantize.grids import grids_of, simulate
from pipeline.stages.quantize.observers import (
    METHODS,
    Statistics,
    channel_scales,
    fake_quantize,
    least_error_through,
    merge,
)
from pipeline.stages.quantize.readers import reader

BATCH = 128
"""Samples that are run at once where whole activations are compared."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A canonical graph and what the calibration samples showed of it.

    Attributes:
        graph: The float graph; programs are made from copies of it.
        scheme: What runs as integers where nothing is left in float on purpose.
        statistics: Of every value that needs its own range, by node name.
        means: Mean over the samples of the input of each weighted operator, ``(1, …)``, by node name.
        inputs: One batch of the samples, for what takes more than statistics.
    """

    graph: GraphModule
    scheme: Scheme
    statistics: dict[str, Statistics]
    means: dict[str, Tensor]
    inputs: tuple[Tensor, ...]


def calibrate(graph: GraphModule, data: SampleSet, *, batch_size: int) -> Calibrated:
    """Run every sample through a canonical graph.

    Raises:
        DataError: A sample holds NaN or infinity.
        StageError: An operator's result does.
    """
    scheme = plan(graph)
    run = _Watching(graph, scheme)
    with torch.no_grad():
        for batch in data.batches(batch_size):
            run.run(*batch.inputs)
    means = {name: total / len(data) for name, total in run.totals.items()}
    (batch,) = data.take(BATCH).batches(BATCH)
    return Calibrated(graph, scheme, run.statistics, means, batch.inputs)


def prepare(
    calibrated: Calibrated, *, method: str, bias_correction: BiasCorrection, skip: tuple[str, ...] = ()
) -> GraphModule:
    """A copy of the graph with a grid wherever a tensor becomes integers; ranges are read by one of `METHODS`."""
    graph = copy.deepcopy(calibrated.graph)
    read = METHODS[method]

    readers = {node.name: function for node in graph.graph.nodes if (function := reader(node)) is not None}

    def ranges(names: list[str]) -> tuple[float, float]:
        statistics = merge(calibrated.statistics[name] for name in names if name in calibrated.statistics)
        if len(names) == 1 and names[0] in readers:
            return least_error_through(statistics, readers[names[0]], worst=method == "minmax")
        return read(statistics)

    if bias_correction != "none":
        for node in plan(graph, skip).weighted:
            correct_bias(graph, node, calibrated.means[node.name])
        graph.recompile()
    prepared: GraphModule = prepare_pt2e(graph, Int8Quantizer(ranges, skip))
    if bias_correction == "empirical":
        simulate(prepared, grids_of(prepared))
        correct_empirically(calibrated.graph, prepared, calibrated.inputs)
        simulate(prepared, set())
    return prepared


def convert(prepared: GraphModule) -> GraphModule:
    """The quantized program of a prepared graph, which is used up: Q/DQ operators in place of grids."""
    converted: GraphModule = convert_pt2e(prepared, fold_quantize=False)
    round_biases(converted)
    return converted


def correct_bias(graph: GraphModule, node: Node, mean: Tensor) -> None:
    """Let a weighted operator's bias take back the mean shift that rounding its weight causes."""
    arguments: Any = node.args
    operator: Any = node.target
    weight, axis = tensor_of(graph, arguments[1]), rule_of(node).channel_axis
    lost = weight - fake_quantize(weight, channel_scales(weight, axis), axis)
    bias = mean_shift(operator, mean, lost, tuple(arguments[3:]))
    if len(arguments) > 2 and arguments[2] is not None:
        bias = bias + tensor_of(graph, arguments[2])
    name = f"{node.name}_corrected_bias"
    graph.register_parameter(name, nn.Parameter(bias, requires_grad=False))
    with graph.graph.inserting_before(node):
        node.args = (*arguments[:2], graph.graph.get_attr(name), *arguments[3:])


class _Watching(Interpreter):
    """Runs the graph, keeps statistics of values, and sums the inputs of weighted operators over the samples."""

    def __init__(self, graph: GraphModule, scheme: Scheme) -> None:
        super().__init__(graph)
        self._weighted = frozenset(scheme.weighted)
        requantizing = {consumer for _, consumer in scheme.requantized}
        # What only moves has the range of what it moves, unless it takes that in with other parameters.
        self._watched = {
            value for value, root in scheme.roots.items() if value is root or value in requantizing or not _moves(value)
        }
        self.statistics: dict[str, Statistics] = {}
        self.totals: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        if n in self._weighted:
            total = self.env[n.all_input_nodes[0]].sum(0, keepdim=True)
            self.totals[n.name] = self.totals[n.name] + total if n.name in self.totals else total
        value = super().run_node(n)
        if n in self._watched and not (n.op == "get_attr" and n.name in self.statistics):
            statistics = self.statistics.setdefault(n.name, Statistics())
            if not statistics.update(value):
                raise StageError(
                    f"{n.target} gives NaN or infinity on the calibration samples",
                    where=layer_name(n),
                    fix="check the model's weights, or leave this module in float: quantize: {skip: [...]}",
                )
        return value


def _moves(node: Node) -> bool:
    rule = RULE_OF.get(str(node.target))
    return rule is not None and rule.kind == "moves"
