"""Sensitivity: what quantizing one layer alone costs, and what leaving that layer alone in float gains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule, Node

from pipeline.stages.quantize.graph.nodes import layer_name
from pipeline.stages.quantize.judge import Score
from pipeline.stages.quantize.scales.grids import GRIDS, PerChannelWeightGrid, grids_of, simulate


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Metric of the network and SQNR of its outputs in dB when one layer is treated differently from all others.

    A layer means its weight and its result.

    Attributes:
        alone_db: When only this layer is quantized: low where that does harm.
        alone_metric: The metric then.
        without_db: When all but this layer are quantized: high where leaving it in float helps.
        without_metric: The metric then.
    """

    layer: str
    alone_db: float
    alone_metric: float
    without_db: float
    without_metric: float


def sensitivities(prepared: GraphModule, judge: Callable[[nn.Module], Score]) -> list[Sensitivity]:
    """Simulate a prepared graph twice per weighted layer: with it alone quantized, and with all others; worst first.

    Layers are ranked by the noise power that each causes alone: the noise of different layers is nearly uncorrelated,
    so powers add up.
    """
    grids = grids_of(prepared)

    def judged(active: set[nn.Module]) -> Score:
        simulate(prepared, active)
        return judge(prepared)

    found = []
    for layer, own in _grids_by_layer(prepared).items():
        alone, without = judged(own), judged(grids - own)
        found.append(Sensitivity(layer, alone.sqnr_db, alone.metric, without.sqnr_db, without.metric))
    simulate(prepared, set())
    return sorted(found, key=lambda entry: entry.alone_db)


def _grids_by_layer(prepared: GraphModule) -> dict[str, set[nn.Module]]:
    """The weight's grid and the result's of every weighted layer, by the layer's name."""
    found: dict[str, set[nn.Module]] = {}
    for node in prepared.graph.nodes:
        weight = node.args[1] if len(node.args) > 1 else None
        if not isinstance(weight, Node) or not isinstance(grid := _grid(prepared, weight), PerChannelWeightGrid):
            continue
        own = found.setdefault(layer_name(node), set())
        own.add(grid)
        result = node
        while result is not None and not isinstance(_grid(prepared, result), GRIDS):
            result = next(iter(result.users), None) if len(result.users) == 1 else None
        if result is not None:
            own.add(prepared.get_submodule(str(result.target)))
    return found


def _grid(prepared: GraphModule, node: Node) -> nn.Module | None:
    return prepared.get_submodule(str(node.target)) if node.op == "call_module" else None
