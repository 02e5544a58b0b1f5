"""Sensitivity: what each layer costs when it alone is quantized, and gains when it alone is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from pipeline.metrics import Comparison, predictor
from pipeline.stages.quantize.annotator import layer_name
from pipeline.stages.quantize.grids import ActivationGrid, PerChannelWeightGrid, grids_of, simulate

Inputs = Sequence[tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """SQNR of the network's outputs in dB, with one layer's weight and result treated unlike all others'.

    Attributes:
        alone_db: Only this layer is quantized: low where it does harm.
        without_db: Everything but this layer is quantized: high where sparing it helps.
    """

    layer: str
    alone_db: float
    without_db: float


def sensitivities(prepared: GraphModule, inputs: Inputs) -> list[Sensitivity]:
    """Simulate a prepared graph on batches of inputs, once for each weighted layer in either way; worst first.

    Layers are ranked by the noise power that they cause alone: noise of different layers is nearly uncorrelated, so
    powers add up.
    """
    grids = grids_of(prepared)
    layers = _grids_by_layer(prepared)
    predict = predictor(prepared)
    simulate(prepared, set())
    reference = [predict(batch) for batch in inputs]

    def sqnr(active: set[nn.Module]) -> float:
        simulate(prepared, active)
        comparison = Comparison()
        for batch, expected in zip(inputs, reference, strict=True):
            comparison.update(predict(batch), expected)
        return comparison.sqnr_db

    found = [Sensitivity(layer, sqnr(own), sqnr(grids - own)) for layer, own in layers.items()]
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
        while result is not None and not isinstance(_grid(prepared, result), ActivationGrid):
            result = next(iter(result.users), None) if len(result.users) == 1 else None
        if result is not None:
            own.add(prepared.get_submodule(str(result.target)))
    return found


def _grid(prepared: GraphModule, node: Node) -> nn.Module | None:
    return prepared.get_submodule(str(node.target)) if node.op == "call_module" else None
