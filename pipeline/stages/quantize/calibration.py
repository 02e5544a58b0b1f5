"""Calibration: one run of the float graph over the samples, and the programs that its statistics make."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from pipeline.core import StageError
from pipeline.data.samples import SampleSet
from pipeline.stages.quantize.annotator import (
    Int8Quantizer,
    Scheme,
    is_float_tensor,
    layer_name,
    plan,
    rule_of,
    set_tensor,
    tensor_of,
)
from pipeline.stages.quantize.graph.capabilities import RULE_OF
from pipeline.stages.quantize.improve.adaround import round_adaptively
from pipeline.stages.quantize.improve.correction import BiasCorrection, Correcting, bias_name, mean_shift, output_means
from pipeline.stages.quantize.ranges.observers import (
    METHODS,
    Function,
    Statistics,
    channel_scales,
    fake_quantize,
    least_error_through,
    merge,
)
from pipeline.stages.quantize.ranges.output_error import OutputError, least_output_error, output_errors
from pipeline.stages.quantize.ranges.readers import reader
from pipeline.stages.quantize.scales.biases import round_biases, rounded_bias
from pipeline.stages.quantize.scales.grids import ActivationGrid, grids_of, simulate
from pipeline.stages.quantize.scales.products import round_alike, self_products_of
from pipeline.stages.quantize.scales.sums import avoid_ties, sums_of

OUTPUT_MSE = "output_mse"
"""The range method that takes gradients beside statistics."""

BATCH = 128
"""Samples that are run at once where whole activations are compared."""

CACHED_ELEMENTS = 5_000_000
"""Elements of the largest activation in a batch: with more, memory is fetched anew for every operator, which costs
more than the arithmetic (224x224 networks run 3 times as fast in batches of 4 as in batches of 64)."""


@dataclass(frozen=True)
class Calibrated:
    """A canonical graph and what the calibration samples showed of it.

    Attributes:
        graph: The float graph; programs are made from copies of it.
        scheme: What runs as integers where nothing is left in float on purpose.
        statistics: Of every value that needs its own range, by node name.
        errors: What ranges of those values cost the outputs, where that was asked for.
        means: Mean over the samples of the input of each weighted operator, ``(1, …)``, by node name.
        inputs: One batch of the samples, for what takes more than statistics.
    """

    graph: GraphModule
    scheme: Scheme
    statistics: dict[str, Statistics]
    errors: dict[str, OutputError]
    means: dict[str, Tensor]
    inputs: tuple[Tensor, ...]
    _ranges: dict[tuple[str, tuple[str, ...]], tuple[float, float]] = field(default_factory=dict)

    def range_of(self, values: tuple[str, ...], method: str) -> tuple[float, float]:
        """The range that some values share, read by one method (once: programs are made again and again)."""
        if (method, values) not in self._ranges:
            self._ranges[method, values] = self._read_range(values, method)
        return self._ranges[method, values]

    def _read_range(self, values: tuple[str, ...], method: str) -> tuple[float, float]:
        if method == OUTPUT_MSE:
            errors = [self.errors[name] for name in values if name in self.errors]
            if errors:
                return least_output_error(errors)
            method = "mse"  # no float output depends on these values
        statistics = merge(self.statistics[name] for name in values if name in self.statistics)
        if len(values) == 1 and values[0] in self._readers:
            return least_error_through(statistics, self._readers[values[0]], worst=method == "minmax")
        return METHODS[method](statistics)

    @property
    def few_inputs(self) -> tuple[Tensor, ...]:
        """As many of the inputs as can be run once for every trial."""
        size = fitting_batch(self.graph, BATCH, 4 * CACHED_ELEMENTS)
        return tuple(tensor[:size] for tensor in self.inputs)

    @cached_property
    def _readers(self) -> dict[str, Function]:
        return {node.name: function for node in self.graph.graph.nodes if (function := reader(node)) is not None}


def calibrate(
    graph: GraphModule, data: SampleSet, *, batch_size: int, methods: Collection[str] = tuple(METHODS)
) -> Calibrated:
    """Run every sample through a canonical graph.

    Args:
        methods: The range methods that will be asked for: of `METHODS`, or `OUTPUT_MSE`.

    Raises:
        DataError: A sample holds NaN or infinity.
        StageError: An operator's result does.
    """
    scheme = plan(graph)
    run = _Watching(graph, scheme, methods)
    with torch.no_grad():
        for batch in data.batches(fitting_batch(graph, batch_size)):
            run.run(*batch.inputs)
    means = {name: total / run.rows[name] for name, total in run.totals.items()}
    errors: dict[str, OutputError] = {}
    if OUTPUT_MSE in methods:
        ends = _shared_ends(scheme, run.statistics)
        errors = output_errors(graph, ends, data, batch_size=fitting_batch(graph, batch_size))
    size = fitting_batch(graph, BATCH, 8 * CACHED_ELEMENTS)
    (batch,) = data.take(size).batches(size)
    return Calibrated(graph, scheme, run.statistics, errors, means, batch.inputs)


class Simulation:
    """A float graph that rounds where a quantized program does; what can be chosen is set anew for every trial.

    Args:
        skip: Names of modules to leave in float.
    """

    def __init__(self, calibrated: Calibrated, skip: tuple[str, ...] = ()) -> None:
        graph = copy.deepcopy(calibrated.graph)
        for node in plan(graph, skip).weighted:
            _give_own_bias(graph, node)
        graph.recompile()
        self.graph: GraphModule = prepare_pt2e(graph, Int8Quantizer(skip))
        self._calibrated = calibrated
        self._weighted = plan(calibrated.graph, skip).weighted
        self._operators = {node.name: node for node in self.graph.graph.nodes}
        self._rounded: dict[str, dict[str, Tensor]] = {}
        self._configured: tuple[str, BiasCorrection, bool] | None = None

    def configure(self, method: str, bias_correction: BiasCorrection, *, adaround: bool = False) -> GraphModule:
        """The graph with ranges, biases and weights as asked for, rounding everywhere.

        Args:
            method: How ranges are read: one of `METHODS`, or `OUTPUT_MSE`.
            adaround: Round weights up or down by what the layers give, and not each to the nearest.
        """
        simulate(self.graph, grids_of(self.graph))
        if self._configured == (method, bias_correction, adaround):
            return self.graph
        self._configured = method, bias_correction, adaround
        found = self._calibrated
        for grid in grids_of(self.graph):
            if isinstance(grid, ActivationGrid):
                grid.set_range(*found.range_of(tuple(grid.holds), method))
        settle_scales(self.graph)
        empirical = bias_correction == "empirical"
        self._set_weights({})
        self._set_biases(bias_correction)
        if adaround:
            if method not in self._rounded:
                self._rounded[method] = round_adaptively(
                    found.graph, self.graph, found.inputs, correct_biases=empirical
                )
                self._set_biases(bias_correction)
            self._set_weights(self._rounded[method])
        if empirical:
            with torch.no_grad():
                Correcting(self.graph, self._expected).run(*found.few_inputs)
        return self.graph

    @cached_property
    def _expected(self) -> dict[str, Tensor]:
        return output_means(self._calibrated.graph, {node.name for node in self._weighted}, self._calibrated.few_inputs)

    def _set_weights(self, rounded: Mapping[str, Tensor]) -> None:
        """These weights, by operator, and the float graph's for all others."""
        float_graph = self._calibrated.graph
        for node in self._weighted:
            weight = node.all_input_nodes[1]
            value = rounded.get(node.name, tensor_of(float_graph, weight))
            set_tensor(self.graph, weight, value)

    def _set_biases(self, bias_correction: BiasCorrection) -> None:
        """The float graph's biases, to which the analytic correction is added where asked."""
        found = self._calibrated
        for node in self._weighted:
            bias = self.graph.get_parameter(bias_name(node.name))
            own = node.args[2] if len(node.args) > 2 else None
            value = tensor_of(found.graph, own) if isinstance(own, Node) else torch.zeros_like(bias)
            if bias_correction == "analytic":
                weight, axis = tensor_of(found.graph, node.all_input_nodes[1]), rule_of(node).channel_axis
                lost = weight - fake_quantize(weight, channel_scales(weight, axis), axis)
                operator: Any = node.target
                value = value + mean_shift(operator, found.means[node.name], lost, tuple(node.args[3:]))
            bias.data = rounded_bias(self.graph, self._operators[node.name], value)


def prepare(
    calibrated: Calibrated,
    *,
    method: str,
    bias_correction: BiasCorrection,
    adaround: bool = False,
    skip: tuple[str, ...] = (),
) -> GraphModule:
    """A copy of the graph with a grid wherever a tensor becomes integers, none of them rounding; see `Simulation`."""
    prepared = Simulation(calibrated, skip).configure(method, bias_correction, adaround=adaround)
    simulate(prepared, set())
    return prepared


def settle_scales(prepared: GraphModule) -> None:
    """Widen grids where runtimes would round apart: those of additions, then those of products like SiLU's.

    Each of the two makes a scale larger by a thirty-second at most.
    """
    growth = avoid_ties(sums_of(prepared))
    for product in self_products_of(prepared):
        round_alike(product, growth.get(product.result))


def convert(prepared: GraphModule) -> GraphModule:
    """The quantized program of a prepared graph, which is used up: Q/DQ operators in place of grids."""
    converted: GraphModule = convert_pt2e(prepared, fold_quantize=False)
    round_biases(converted)
    return converted


def fitting_batch(graph: GraphModule, limit: int, elements: int = CACHED_ELEMENTS) -> int:
    """How many samples to run at once: at most ``limit``, and so many elements in the largest activation at most.

    A graph that takes one batch size only gets that.
    """
    batch = next(node.meta["val"].shape[0] for node in graph.graph.nodes if node.op == "placeholder")
    if isinstance(batch, int):
        return batch
    sizes = [node.meta["val"].numel() for node in graph.graph.nodes if is_float_tensor(node)]
    largest = max((_hint(size) for size in sizes if isinstance(size, torch.SymInt)), default=1) / _hint(batch)
    return max(1, min(limit, int(elements / largest)))


def _hint(size: torch.SymInt) -> int:
    """What the size was when the graph was captured."""
    return int(size.node.hint)


def _give_own_bias(graph: GraphModule, node: Node) -> None:
    """Let a weighted operator read a bias that no other one reads."""
    channel = -1 if node.target == torch.ops.aten.linear.default else 1
    name = bias_name(node.name)
    graph.register_parameter(name, nn.Parameter(torch.zeros(node.meta["val"].shape[channel]), requires_grad=False))
    with graph.graph.inserting_before(node):
        node.args = (*node.args[:2], graph.graph.get_attr(name), *node.args[3:])


class _Watching(Interpreter):
    """Runs the graph, keeps statistics of values, and sums up what weighted operators take in."""

    def __init__(self, graph: GraphModule, scheme: Scheme, methods: Collection[str]) -> None:
        super().__init__(graph)
        self._methods = methods
        self._weighted = frozenset(scheme.weighted)
        requantizing = {consumer for _, consumer in scheme.requantized}
        # What only moves has the range of what it moves, unless it takes that in with other parameters.
        self._watched = {
            value
            for value, root in scheme.roots.items()
            if _kind(value) != "fixed" and (value is root or value in requantizing or _kind(value) != "moves")
        }
        self.statistics: dict[str, Statistics] = {}
        self.totals: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}

    def run_node(self, n: Node) -> Any:
        if n in self._weighted:
            values = self.env[n.all_input_nodes[0]]
            if n.target == torch.ops.aten.linear.default:
                values = values.reshape(-1, values.shape[-1])
            total = _sum_of_rows(values)
            self.totals[n.name] = self.totals[n.name] + total if n.name in self.totals else total
            self.rows[n.name] = self.rows.get(n.name, 0) + len(values)
        value = super().run_node(n)
        if n in self._watched and not (n.op == "get_attr" and n.name in self.statistics):
            if n.name not in self.statistics:
                self.statistics[n.name] = Statistics(_needed(n, self._methods))
            statistics = self.statistics[n.name]
            if not statistics.update(value):
                raise StageError(
                    f"{n.target} gives NaN or infinity on the calibration samples",
                    where=layer_name(n),
                    fix="check the model's weights, or leave this module in float: quantize: {skip: [...]}",
                )
        return value


def _needed(value: Node, methods: Collection[str]) -> Collection[str]:
    """The methods that a value's range may be read by: a constant has no samples; a reader needs the histogram."""
    if value.op == "get_attr":
        return [method for method in methods if method != "moving_average"]
    return methods if reader(value) is None else (*methods, "mse")


def _shared_ends(scheme: Scheme, statistics: Mapping[str, Statistics]) -> dict[str, tuple[float, float]]:
    """The extremes of all values that share parameters, for each of them by name."""
    ends: dict[Node, tuple[float, float]] = {}
    watched = {value: root for value, root in scheme.roots.items() if value.name in statistics}
    for value, root in watched.items():
        own, (low, high) = statistics[value.name], ends.get(root, (0.0, 0.0))
        ends[root] = min(low, own.low), max(high, own.high)
    return {value.name: ends[root] for value, root in watched.items()}


def _sum_of_rows(values: Tensor) -> Tensor:
    """``values.sum(0, keepdim=True)`` as a matrix product, which is four times as fast."""
    return (torch.ones(1, len(values)) @ values.reshape(len(values), -1)).reshape(1, *values.shape[1:])


def _kind(node: Node) -> str | None:
    rule = RULE_OF.get(str(node.target))
    return None if rule is None else rule.kind
