"""What the placement says of float kernels, against the optimized graph run node by node."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import targets
from pipeline.target import Lowered
from targets.onnx.placement import CONVERTS, INDICES, KEPT, NO_KERNEL, NOT_QUANTIZED
from targets.onnx.session import session_options
from tests.targets.float_layers import LAYERS, calibrated, model_of

REASONS = {
    "hardswish": {("HardSigmoid", NO_KERNEL): 1, ("Mul", NOT_QUANTIZED): 1},
    "gelu": {("Gelu", NO_KERNEL): 1},
    "attention": {("Softmax", KEPT): 1, ("Mul", KEPT): 1},
    "layer_norm": {("LayerNormalization", NO_KERNEL): 1},
    "prelu": {("PRelu", NO_KERNEL): 1, ("Reshape", NOT_QUANTIZED): 1},
    "elu": {("Elu", NO_KERNEL): 1},
    "embedding": {},
    "convolution": {},
}


def found_in_float(lowered: Lowered, folder: Path) -> Counter[str]:
    """Operators that read or write floats in the graph that onnxruntime executes, by the values that really flow.

    Conversions between the model's own float interface and integers are left out.
    """
    optimized = folder / "optimized.onnx"
    options = session_options(1, optimized=optimized)
    onnxruntime.InferenceSession(lowered.path, options, providers=["CPUExecutionProvider"])
    graph = (model := onnx.load(optimized)).graph
    interface = {value.name for value in (*graph.input, *graph.output)}
    constants = {tensor.name for tensor in graph.initializer}
    values = [name for node in graph.node for name in node.output if name and name not in interface]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in values)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {spec.name: np.zeros((1, *spec.shape), spec.dtype) for spec in lowered.inputs}
    names = [output.name for output in session.get_outputs()]
    types = {name: array.dtype for name, array in zip(names, session.run(names, feeds), strict=True)}
    types |= {name: array.dtype for name, array in feeds.items()}
    found: Counter[str] = Counter()
    for node in graph.node:
        flowing = [name for name in (*node.input, *node.output) if name not in constants and name in types]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found[node.op_type] += not interface & {node.input[0], *node.output}
        elif not node.op_type.startswith("QLinear") and node.op_type not in ("QGemm", "Shape"):
            found[node.op_type] += any(types[name] == np.float32 for name in flowing)
    return +found


@pytest.mark.parametrize("name", LAYERS)
def test_placement_lists_the_operators_that_the_executed_graph_computes_in_float(name: str, tmp_path: Path) -> None:
    target = targets.get("onnx")
    lowered = target.lower(model_of(name), tmp_path, name="model")
    placement = target.placement(lowered)
    assert placement is not None
    listed: Counter[str] = Counter()
    for fallback in placement.fallback:
        listed[fallback.op] += fallback.count
    assert listed == found_in_float(lowered, tmp_path)
    reasons = {(item.op, item.reason): item.count for item in placement.fallback if item.reason != CONVERTS}
    assert reasons == REASONS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3", "vit", "convnext"])
def test_placement_lists_the_float_operators_of_a_calibrated_network(name: str, tmp_path: Path) -> None:
    target = targets.get("onnx")
    lowered = target.lower(calibrated(name), tmp_path, name="model")
    placement = target.placement(lowered)
    assert placement is not None
    listed: Counter[str] = Counter()
    for fallback in placement.fallback:
        listed[fallback.op] += fallback.count if fallback.reason != INDICES else 0
    assert +listed == found_in_float(lowered, tmp_path)
