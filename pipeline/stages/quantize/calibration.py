"""Calibration: the captured graph with observers in it, run once over the samples."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from pipeline.core import ModelArtifact
from pipeline.data import SampleSet
from pipeline.program import capture
from pipeline.stages.quantize.annotator import Int8Quantizer, Scheme, rule_of
from pipeline.stages.quantize.biases import round_biases
from pipeline.stages.quantize.correction import corrected_bias
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


def calibrate(artifact: ModelArtifact, data: SampleSet, *, batch_size: int, skip: tuple[str, ...] = ()) -> Calibrated:
    """Capture the module, fold batch norms, insert observers, and run every sample through them."""
    program = capture(artifact.module, artifact.inputs).run_decompositions({})
    quantizer = Int8Quantizer(skip)
    prepared = prepare_pt2e(program.module(check_guards=False), quantizer)
    weighted = frozenset(node.name for node in quantizer.scheme.quantized if rule_of(node).kind == "weighted")
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
    bias = torch.zeros(len(observer.scales)) if bias_node is None else _attribute(prepared, str(bias_node.target))
    corrected = corrected_bias(node.target, mean, weight, rounded, bias, tuple(node.args[3:]))
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
