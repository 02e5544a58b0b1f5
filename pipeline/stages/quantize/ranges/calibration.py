"""Calibration: one run of the canonical graph over the samples, and the ranges read from what it collected."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from pipeline.core import StageError
from pipeline.data.samples import SampleSet, examples_of
from pipeline.machine.memory import footprint, require_batch
from pipeline.models.capture import example_inputs
from pipeline.stages.quantize.graph.capabilities import kind_of
from pipeline.stages.quantize.graph.joins import Reasons
from pipeline.stages.quantize.graph.nodes import (
    activations,
    by_key,
    channel_axis,
    is_float_tensor,
    key_of,
    layer_name,
    pad_value,
)
from pipeline.stages.quantize.graph.scheme import Scheme, scheme_of
from pipeline.stages.quantize.ranges.losses import Losses
from pipeline.stages.quantize.ranges.methods import METHODS, Evidence, Function, Range
from pipeline.stages.quantize.ranges.output_error import OutputError, output_errors
from pipeline.stages.quantize.ranges.precision import why_precise
from pipeline.stages.quantize.ranges.readers import reader
from pipeline.stages.quantize.ranges.statistics import Statistics, merge

logger = logging.getLogger(__name__)

BATCH = 128
"""Samples that are run at once where whole activations are compared."""

FEW = 16
"""Samples on which single operators are tried."""

CACHED_ELEMENTS = 5_000_000
"""Limit for the elements of the largest activation in a batch. Beyond it, every operator gets fresh memory from the
system, which costs more than the arithmetic (224x224 networks run 3 times as fast in batches of 4 as of 64)."""


@dataclass(frozen=True)
class Calibration:
    """A canonical graph and what the calibration samples revealed about it.

    Attributes:
        graph: The float graph; programs are made from copies of it.
        scheme: What runs as integers if no layer is left in float on purpose.
        spans: How wide the values are, by the node's key; schemes with more layers in float are made with them.
        precise: What needs floats since one grid would lose a part of it, and why, by the node's key; for these, too.
        statistics: Of every value that needs its own range, by the node's key.
        errors: What candidate ranges of those values cost the outputs, if a method needs that.
        means: Mean over the samples of the input of each weighted operator, ``(1, …)``, by the operator's key.
        inputs: One batch of the samples, for steps that need more than statistics.
    """

    graph: GraphModule
    scheme: Scheme
    spans: dict[str, float]
    precise: Reasons
    statistics: dict[str, Statistics]
    errors: dict[str, OutputError]
    means: dict[str, Tensor]
    inputs: tuple[Tensor, ...]
    _ranges: dict[tuple[str, tuple[str, ...]], Range] = field(default_factory=dict)

    def range_of(self, values: tuple[str, ...], method: str) -> Range:
        """The range that some values share, by one of `METHODS` (read once: many simulations ask for it)."""
        if (method, values) not in self._ranges:
            self._ranges[method, values] = METHODS[method].read(self._evidence(values))
        return self._ranges[method, values]

    def _evidence(self, values: tuple[str, ...]) -> Evidence:
        return Evidence(
            merge(self.statistics[key] for key in self._seen(values)),
            tuple(self.errors[value] for value in values if value in self.errors),
            self._readers.get(values[0]) if len(values) == 1 else None,
        )

    def _seen(self, values: tuple[str, ...]) -> list[str]:
        """Those of some values that were watched; values that only move others have theirs."""
        seen: dict[str, None] = {}
        for value in values:
            node = self._nodes[value]
            while key_of(node) not in self.statistics and kind_of(node) == "moves":
                node = activations(node)[0]
            if key_of(node) in self.statistics:
                seen[key_of(node)] = None
        return list(seen)

    @cached_property
    def _nodes(self) -> dict[str, Node]:
        return by_key(self.graph)

    @property
    def few_inputs(self) -> tuple[Tensor, ...]:
        """As many of the inputs as every trial can afford to run."""
        size = fitting_batch(self.graph, BATCH, 4 * CACHED_ELEMENTS)
        return tuple(tensor[:size] for tensor in self.inputs)

    @cached_property
    def _readers(self) -> dict[str, Function]:
        return {key: function for key, node in by_key(self.graph).items() if (function := reader(node)) is not None}


def calibrate(
    graph: GraphModule, data: SampleSet, *, batch_size: int, methods: Collection[str] = tuple(METHODS)
) -> Calibration:
    """Run every sample through a canonical graph.

    Args:
        methods: The range methods that will be used, from `METHODS`; what none of them needs is not kept.

    Raises:
        DataError: A sample holds NaN or infinity.
        StageError: An operator's result does.
        EdgewrightError: A batch does not fit into memory.
    """
    examples = examples_of(data)
    needs = footprint(lambda count: graph(*example_inputs(examples, count)))
    size = min(fitting_batch(graph, batch_size), len(data))
    require_batch("quantize: calibration", needs, size, setting="quantize.batch_size")
    run = _Watching(graph, scheme_of(graph), methods)
    with torch.no_grad():
        for batch in data.batches(fitting_batch(graph, batch_size)):
            run.run(*batch.inputs)
    spans = {key: each.high - each.low for key, each in run.statistics.items()}
    spans |= dict.fromkeys(run.infinite, math.inf)
    size = fitting_batch(graph, BATCH, 8 * CACHED_ELEMENTS)
    (batch,) = data.take(size).batches(size)
    losses = Losses(graph, tuple(each[:FEW] for each in batch.inputs))
    precise = why_precise(losses, spans)
    scheme = scheme_of(graph, spans=spans, precise=precise)
    for key in run.infinite & scheme.roots.keys():
        raise _not_finite(by_key(graph)[key])
    means = {key: total / run.rows[key] for key, total in run.totals.items()}
    errors: dict[str, OutputError] = {}
    if any(METHODS[method].gradients for method in methods):
        ends = _shared_ends(scheme, run.statistics)
        errors = output_errors(graph, ends, data, batch_size=fitting_batch(graph, batch_size))
    logger.debug("%d samples: %d statistics, %d output errors", len(data), len(run.statistics), len(errors))
    return Calibration(graph, scheme, spans, precise, run.statistics, errors, means, batch.inputs)


def fitting_batch(graph: GraphModule, limit: int, elements: int = CACHED_ELEMENTS) -> int:
    """How many samples to run at once: at most ``limit``, with at most ``elements`` in the largest activation.

    A graph with a fixed batch size gets that size.
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


class _Watching(Interpreter):
    """Runs the graph, keeps statistics of values, and sums up the inputs of weighted operators."""

    def __init__(self, graph: GraphModule, scheme: Scheme, methods: Collection[str]) -> None:
        super().__init__(graph)
        self._methods = methods
        self._weighted = frozenset(scheme.weighted)
        nodes, requantizing = by_key(graph), {consumer for _, consumer in scheme.requantized}
        joining = [key for key, node in nodes.items() if kind_of(node) == "moves" and len(activations(node)) > 1]
        requantizing.update(joining)
        requantizing.update(key for key, node in nodes.items() if (number := pad_value(node)) and math.isfinite(number))
        # An operator that only moves values has their range, unless it may read them with other parameters. With more
        # operators in float, what moves the values of a prescribed grid needs a range of its own.
        self._watched = {
            value
            for value, root in scheme.roots.items()
            if (kind_of(nodes[value]) != "fixed" or any(kind_of(user) == "moves" for user in nodes[value].users))
            and (value == root or value in requantizing or kind_of(nodes[value]) != "moves")
        }
        self.statistics: dict[str, Statistics] = {}
        self.totals: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}
        self.infinite: set[str] = set()  # values that hold minus infinity, as masks do

    def run_node(self, n: Node) -> Any:
        key = key_of(n)
        if key in self._weighted:
            self._sum_up(key, self.env[n.all_input_nodes[0]], channel_axis(n.target))
        value = super().run_node(n)
        if key in self._watched and not (n.op == "get_attr" and key in self.statistics):
            if key not in self.statistics:
                self.statistics[key] = _statistics_for(n, self._methods)
            if not self.statistics[key].update(value):
                if not (value < math.inf).all():  # also where it is not a number
                    raise _not_finite(n)
                self.infinite.add(key)
        return value

    def _sum_up(self, key: str, values: Tensor, axis: int) -> None:
        if axis == -1:
            values = values.reshape(-1, values.shape[-1])
        total = _sum_of_rows(values)
        self.totals[key] = self.totals[key] + total if key in self.totals else total
        self.rows[key] = self.rows.get(key, 0) + len(values)


def _not_finite(node: Node) -> StageError:
    return StageError(
        f"{node.target} gives NaN or infinity on the calibration samples",
        where=layer_name(node),
        fix="check the model's weights, or leave this module in float: quantize: {skip: [...]}",
    )


def _statistics_for(value: Node, methods: Collection[str]) -> Statistics:
    """What the methods need of a value: a constant has no samples to average; a reader needs the histogram."""
    counts = any(METHODS[method].histogram for method in methods) or reader(value) is not None
    averages = any(METHODS[method].averages for method in methods) and value.op != "get_attr"
    return Statistics(counts=counts, averages=averages)


def _shared_ends(scheme: Scheme, statistics: Mapping[str, Statistics]) -> dict[str, Range]:
    """The extremes of all values that share parameters, for each of them by its key."""
    ends: dict[str, Range] = {}
    watched = {value: root for value, root in scheme.roots.items() if value in statistics}
    for value, root in watched.items():
        own, (low, high) = statistics[value], ends.get(root, (0.0, 0.0))
        ends[root] = min(low, own.low), max(high, own.high)
    return {value: ends[root] for value, root in watched.items()}


def _sum_of_rows(values: Tensor) -> Tensor:
    """``values.sum(0, keepdim=True)`` as a matrix product, which is four times as fast."""
    return (torch.ones(1, len(values)) @ values.reshape(len(values), -1)).reshape(1, *values.shape[1:])
