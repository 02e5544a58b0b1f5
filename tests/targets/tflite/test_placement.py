import numpy as np
import pytest
from torch import nn
from torch.nn import functional as F

from pipeline.recipe import TfliteConfig
from targets.tflite import TfliteTarget
from targets.tflite.placement import IN_FLOAT, OUTSIDE, delegated
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
    assert reasons["DEQUANTIZE"] == "computed in float in an integer model"
    assert "SIN" in reasons


@pytest.mark.slow
def test_placement_says_what_would_have_left_the_delegate_without_our_forms(tmp_path):
    class Swish(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = QuantizedConv()

        def forward(self, x):
            return through_int8(F.hardswish(self.conv(x)), 0.05, -100)

    target = TfliteTarget(TfliteConfig(npu=("ethos-u55-256",)))
    lowered = target.lower(model(Swish(), (3, 9, 9), quantized=True), tmp_path, name="model")
    assert lowered.notes[0] == "1 x hardswish rewritten for the cpu"
    placement = target.placement(lowered)
    assert "1 XNNPACK partition" in placement.source
    assert {fallback.reason for fallback in placement.fallback} == {IN_FLOAT}
    assert {(fallback.op, fallback.reason) for fallback in placement.before.fallback} == {("HARD_SWISH", OUTSIDE)}
    (estimate,) = target.estimates(lowered)
    assert estimate.placement.before.operators > 0


@pytest.mark.slow
def test_placement_has_no_before_when_nothing_was_rewritten(tmp_path):
    target = TfliteTarget()
    lowered = target.lower(model(QuantizedConv(), (3, 9, 9), quantized=True), tmp_path, name="model")
    assert target.placement(lowered).before is None
