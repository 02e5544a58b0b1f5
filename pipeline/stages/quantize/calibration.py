"""Calibration: the captured graph with observers in it, run once over the samples."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from pipeline.data import SampleSet
from pipeline.stages.quantize.annotator import Int8Quantizer, Scheme
from pipeline.stages.quantize.biases import round_biases
from pipeline.stages.quantize.correction import mean_shift
from pipeline.stages.quantize.observers import METHODS, ActivationObserver, PerChannelWeightObserver, fake_quantize


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A prepared graph that has seen the calibration samples.

    Attributes:
        prepared: The graph with observers; `convert` works on copies of it.
        scheme: What runs as integers; its nodes are those of the graph before preparation.
        means: Mean over the samples of the input of each weighted operator, ``(1, …)``, by node name.
    """

    prepared: GraphModule
    scheme: Scheme
    means: dict[str, Tensor]


def calibrate(graph: GraphModule, data: SampleSet, *, batch_size: int, skip: tuple[str, ...] = ()) -> Calibrated:
    """Insert observers into a canonical graph (in place), and run every sample through them."""
    quantizer = Int8Quantizer(skip)
    prepared = prepare_pt2e(graph, quantizer)
    weighted = frozenset(node.name for node in quantizer.scheme.weighted)
    run = _Calibration(prepared, weighted)
    with torch.no_grad():
        for batch in data.batches(batch_size):
            run.run(*batch.inputs)
    return Calibrated(prepared, quantizer.scheme, {name: total / len(data) for name, total in run.totals.items()})


def convert(calibrated: Calibrated, *, method: str, bias_correction: bool) -> GraphModule:
    """The quantized program: a Q/DQ graph whose activation ranges are read by one of `METHODS`."""
    prepared = copy.deepcopy(calibrated.prepared)
    for module in prepared.modules():
        if isinstance(module, ActivationObserver):
            module.method = METHODS[method]
    if bias_correction:
        for name, mean in calibrated.means.items():
            _correct(prepared, name, mean)
    converted: GraphModule = convert_pt2e(prepared, fold_quantize=False)
    round_biases(converted)
    return converted


class _Calibration(Interpreter):
    """Runs the prepared graph and sums the inputs of weighted operators over the samples."""

    def __init__(self, prepared: GraphModule, weighted: frozenset[str]) -> None:
        super().__init__(prepared)
        self._weighted = weighted
        self.totals: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        if n.name in self._weighted:
            total = self.env[n.all_input_nodes[0]].detach().sum(0, keepdim=True)
            self.totals[n.name] = self.totals[n.name] + total if n.name in self.totals else total
        return super().run_node(n)


def _correct(prepared: GraphModule, name: str, mean: Tensor) -> None:
    """Give one weighted operator of a prepared graph its corrected bias."""
    node: Any = next(node for node in prepared.graph.nodes if node.name == name)
    weight_node, bias_node = node.args[1], node.args[2] if len(node.args) > 2 else None
    observer = prepared.get_submodule(str(weight_node.target))
    assert isinstance(observer, PerChannelWeightObserver)
    weight = _attribute(prepared, str(weight_node.args[0].target))
    rounded = fake_quantize(weight, observer.scales, observer.ch_axis)
    corrected = mean_shift(node.target, mean, weight - rounded, tuple(node.args[3:]))
    if bias_node is not None:
        corrected += _attribute(prepared, str(bias_node.target))
    attribute = f"{name}_corrected_bias"
    setattr(prepared, attribute, nn.Parameter(corrected, requires_grad=False))
    with prepared.graph.inserting_before(node):
        node.args = (node.args[0], node.args[1], prepared.graph.get_attr(attribute), *node.args[3:])
    if bias_node is not None and not bias_node.users:
        prepared.graph.erase_node(bias_node)
    prepared.recompile()


def _attribute(module: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    value = getattr(module.get_submodule(owner), name)
    assert isinstance(value, Tensor)
    return value.detach()
