from collections import Counter

import numpy as np
import pytest
from torch import nn
from torch.nn import functional as F

from pipeline.recipe import TfliteConfig
from targets.tflite import TfliteTarget, flatbuffer
from targets.tflite.placement import CONVERTS, IN_FLOAT, KEPT_REASONS, OUTSIDE, REQUANTIZES, delegated
from tests.targets.float_layers import LAYERS, calibrated, model_of
from tests.targets.tflite.programs import QuantizedConv, model, through_int8


def node(index, inputs, outputs, name="ADD"):
    return {"index": index, "op_name": name, "inputs": np.array(inputs), "outputs": np.array(outputs)}


def test_delegated_stops_at_the_partitions_borders():
    # 0 -a-> 1 -b-> 2 -c-> 3 -d-> 4 ; the partition takes b and d in and gives c and 4 out: it replaces b-c and d-4
    operators = [node(10, [0], [1]), node(11, [1], [2]), node(12, [2], [3]), node(13, [3], [4])]
    partitions = [node(20, [1], [2], "DELEGATE"), node(21, [3], [4], "DELEGATE")]
    assert delegated(operators, partitions) == {11, 13}


def test_delegated_takes_every_branch_between_outputs_and_inputs():
    operators = [node(0, [0], [1]), node(1, [0], [2]), node(2, [1, 2], [3])]
    assert delegated(operators, [node(9, [0], [3], "DELEGATE")]) == {0, 1, 2}


def test_placement_is_one_partition_without_fallback_when_all_is_integer(tmp_path):
    target = TfliteTarget()
    lowered = target.lower(model(QuantizedConv(), (3, 9, 9), quantized=True), tmp_path, name="model")
    placement = target.placement(lowered)
    assert placement.accelerated == placement.operators > 0
    assert placement.fallback == ()
    assert "1 XNNPACK partition" in placement.source


@pytest.mark.slow
def test_placement_names_what_is_left_in_float_and_what_leaves_the_delegate(tmp_path):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = QuantizedConv()

        def forward(self, x):
            return self.conv(x).sin()

    target = TfliteTarget()
    lowered = target.lower(model(Mixed(), (3, 9, 9), quantized=True), tmp_path, name="model")
    reasons = {fallback.op: fallback.reason for fallback in target.placement(lowered).fallback}
    assert reasons["DEQUANTIZE"] == CONVERTS
    assert "SIN" in reasons


@pytest.mark.slow
def test_placement_says_what_would_have_left_the_delegate_without_our_forms(tmp_path):
    class Swish(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = QuantizedConv()

        def forward(self, x):
            return through_int8(F.hardswish(self.conv(x)), 0.05, -100)

    target = TfliteTarget(TfliteConfig(npu=("ethos-u55-256",), compare_forms=True))
    lowered = target.lower(model(Swish(), (3, 9, 9), quantized=True), tmp_path, name="model")
    assert lowered.notes[0] == "1 x hardswish kept in float between integers for the cpu"
    placement = target.placement(lowered)
    assert "1 XNNPACK partition" in placement.source
    assert {fallback.reason for fallback in placement.fallback} == {KEPT_REASONS["HARD_SWISH"], CONVERTS}
    assert {(fallback.op, fallback.reason) for fallback in placement.before.fallback} == {("HARD_SWISH", OUTSIDE)}
    (estimate,) = target.estimates(lowered)
    assert estimate.placement.before.operators > 0


@pytest.mark.slow
def test_placement_has_no_before_when_nothing_was_rewritten(tmp_path):
    target = TfliteTarget(TfliteConfig(compare_forms=True))
    lowered = target.lower(model(QuantizedConv(), (3, 9, 9), quantized=True), tmp_path, name="model")
    assert target.placement(lowered).before is None


REASONS = {
    "hardswish": {("HARD_SWISH", KEPT_REASONS["HARD_SWISH"]): 1},
    "gelu": {("GELU", KEPT_REASONS["GELU"]): 1},
    "prelu": {("RELU", IN_FLOAT): 1, ("MUL", IN_FLOAT): 2, ("SUB", IN_FLOAT): 1},  # the converter knows it as these
    "elu": {("EXP", IN_FLOAT): 1, ("SUB", IN_FLOAT): 1, ("GREATER_EQUAL", OUTSIDE): 1, ("SELECT", OUTSIDE): 1},
    "attention": {
        ("BATCH_MATMUL", KEPT_REASONS["BATCH_MATMUL"]): 2,
        ("MUL", KEPT_REASONS["MUL"]): 1,
        ("RESHAPE", IN_FLOAT): 2,
        ("SOFTMAX", KEPT_REASONS["SOFTMAX"]): 1,
    },
    "layer_norm": {
        **{(op, IN_FLOAT): 3 for op in ("ADD", "MUL", "RESHAPE")},
        **{(op, IN_FLOAT): 1 for op in ("RSQRT", "SQUARED_DIFFERENCE", "SUB")},
        ("MEAN", IN_FLOAT): 2,
    },
    "embedding": {},
    "convolution": {},
}


def found_in_float(path):
    """Operators of a file that read or write computed float tensors."""
    model = flatbuffer.read_model(path.read_bytes())
    graph = model.subgraphs[0]
    computed = {int(index) for operator in graph.operators for index in operator.outputs} | set(graph.inputs)
    return Counter(
        flatbuffer.operator_name(model, operator)
        for operator in graph.operators
        if any(
            flatbuffer.dtype_name(graph.tensors[index]) == "FLOAT32"
            for index in (*operator.inputs, *operator.outputs)
            if index in computed
        )
    )


def listed_in_float(placement):
    listed = Counter()
    for fallback in placement.fallback:
        listed[fallback.op] += fallback.count if fallback.reason != OUTSIDE else 0
    return +listed


@pytest.mark.parametrize("name", LAYERS)
def test_placement_lists_the_operators_that_the_file_computes_in_float(name, tmp_path):
    target = TfliteTarget()
    lowered = target.lower(model_of(name), tmp_path, name="model")
    placement = target.placement(lowered)
    assert listed_in_float(placement) == found_in_float(lowered.path)
    reasons = {(item.op, item.reason): item.count for item in placement.fallback if item.reason != CONVERTS}
    assert reasons == REASONS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3", "vit", "convnext"])
def test_placement_lists_the_float_operators_of_a_calibrated_network(name, tmp_path):
    target = TfliteTarget()
    lowered = target.lower(calibrated(name), tmp_path, name="model")
    assert listed_in_float(target.placement(lowered)) == found_in_float(lowered.path)


def test_placement_says_so_when_quantization_parameters_change_through_float(tmp_path):
    """Nothing computes between the DEQUANTIZE and the QUANTIZE, which the converter makes beside a PAD."""

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = QuantizedConv()

        def forward(self, x):
            y = through_int8(self.conv(x), 0.07, -120)
            return through_int8(F.pad(y, (1, 1, 1, 1)), 0.07, -120)

    target = TfliteTarget()
    lowered = target.lower(model(Padded(), (3, 9, 9), quantized=True), tmp_path, name="model")
    reasons = {(item.op, item.count, item.reason) for item in target.placement(lowered).fallback}
    assert reasons == {("DEQUANTIZE", 1, REQUANTIZES), ("QUANTIZE", 1, REQUANTIZES)}
