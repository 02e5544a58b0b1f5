"""Every pass on a small graph written by hand: what it changes, and what it must leave alone."""

import math

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from targets.onnx.passes.fold_weights import FoldWeights
from targets.onnx.passes.quantize_biases import LIMIT, QuantizeBiases
from targets.onnx.passes.reencode_activations import ReencodeActivations
from targets.onnx.passes.remove_implied_clamps import RemoveImpliedClamps
from targets.onnx.passes.remove_requantization import RemoveRequantization
from targets.onnx.passes.use_global_pooling import UseGlobalPooling
from targets.onnx.qdq import constant, encoding

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'


def graph_of(text: str) -> ir.Model:
    return ir.from_onnx_text(f"{HEADER}\n{text}")


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model, **inputs: np.ndarray) -> np.ndarray:
    """The model as onnxruntime evaluates it node by node, without any fusion."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


QUANTIZED_WEIGHT = """
model (float[2, 2] x) => (float[2, 2] y)
<float[2, 2] w = {0.26, -1.0, 300.0, 0.0}, float[2] s = {0.5, 2.0}, int8[2] z = {0, 0},
 int8 low = {-127}, int8 high = {127}>
{
    q = QuantizeLinear <axis = 0> (w, s, z)
    c = Clip (q, low, high)
    d = DequantizeLinear <axis = 0> (c, s, z)
    y = MatMul (x, d)
}
"""


def test_fold_weights_stores_the_integers_when_a_constant_is_quantized() -> None:
    model = graph_of(QUANTIZED_WEIGHT)
    before = run(model, x=np.eye(2, dtype=np.float32))
    FoldWeights()(model)
    RemoveUnusedNodesPass()(model)
    assert operators(model) == ["DequantizeLinear", "MatMul"]
    stored = constant(model.graph[0].inputs[0])
    assert stored is not None
    assert stored.dtype == np.int8
    assert stored.tolist() == [[1, -2], [127, 0]]  # 0.26/0.5 -> 1 (0.52), 300/2 = 150 -> clipped to 127
    np.testing.assert_array_equal(run(model, x=np.eye(2, dtype=np.float32)), before)


def test_fold_weights_changes_nothing_when_the_input_is_computed() -> None:
    model = graph_of("""
    model (float[2] x) => (float[2] y) <float s = {0.5}, int8 z = {0}>
    { q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, s, z) }
    """)
    assert not FoldWeights()(model).modified


def test_reencode_keeps_every_real_number_when_int8_becomes_uint8() -> None:
    model = graph_of("""
    model (float[N] x) => (float[N] y) <float s = {0.25}, int8 z = {-3}>
    { q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, s, z) }
    """)
    values = np.linspace(-50, 50, 1001, dtype=np.float32)
    before = run(model, x=values)
    ReencodeActivations()(model)
    rule = encoding(model.graph[0])
    assert rule is not None
    assert (rule.zero_point.dtype, int(rule.zero_point)) == (np.uint8, 125)
    np.testing.assert_array_equal(run(model, x=values), before)


def test_reencode_changes_nothing_when_another_operator_reads_the_integers() -> None:
    model = graph_of("""
    model (float[2] x) => (int8[2] y) <float s = {0.25}, int8 z = {-3}>
    { q = QuantizeLinear (x, s, z)  y = Identity (q) }
    """)
    assert not ReencodeActivations()(model).modified


def clamped(clamp: str, scale: str, zero_point: int) -> ir.Model:
    return graph_of(f"""
    model (float[N] x) => (float[N] y)
    <float s = {{{scale}}}, uint8 z = {{{zero_point}}}, float low = {{0.0}}, float high = {{6.0}}>
    {{ c = {clamp}  q = QuantizeLinear (c, s, z)  y = DequantizeLinear (q, s, z) }}
    """)


@pytest.mark.parametrize(
    ("clamp", "scale", "zero_point", "removed"),
    [
        pytest.param("Relu (x)", "0.1", 0, True, id="relu, range starts at 0"),
        pytest.param("Relu (x)", "0.1", 1, False, id="relu, range starts below 0"),
        pytest.param("Clip (x, low, high)", "0.0235294122248888", 0, True, id="relu6, range is 0 to 6"),
        pytest.param("Clip (x, low, high)", "0.02", 0, True, id="relu6, range ends below 6"),
        pytest.param("Clip (x, low, high)", "0.024", 0, False, id="relu6, range ends above 6"),
        pytest.param("Clip (x, , high)", "0.02", 9, True, id="no lower bound"),
    ],
)
def test_remove_implied_clamps_only_when_the_range_implies_them(
    clamp: str, scale: str, zero_point: int, removed: bool
) -> None:
    model = clamped(clamp, scale, zero_point)
    values = np.linspace(-20, 20, 4001, dtype=np.float32)
    before = run(model, x=values)
    assert RemoveImpliedClamps()(model).modified is removed
    np.testing.assert_array_equal(run(model, x=values), before)


def test_remove_implied_clamps_changes_nothing_when_someone_else_reads_the_clamped_value() -> None:
    model = graph_of("""
    model (float[N] x) => (float[N] y, float[N] c) <float s = {0.1}, uint8 z = {0}>
    { c = Relu (x)  q = QuantizeLinear (c, s, z)  y = DequantizeLinear (q, s, z) }
    """)
    assert not RemoveImpliedClamps()(model).modified


@pytest.mark.parametrize(("second", "removed"), [("0.5", True), ("0.25", False)])
def test_remove_requantization_only_when_both_encodings_are_the_same(second: str, removed: bool) -> None:
    model = graph_of(f"""
    model (float[N] x) => (float[N] y) <float s = {{0.5}}, float t = {{{second}}}, uint8 z = {{7}}>
    {{
        a = QuantizeLinear (x, s, z)  b = DequantizeLinear (a, s, z)
        c = QuantizeLinear (b, t, z)  y = DequantizeLinear (c, t, z)
    }}
    """)
    values = np.linspace(-100, 100, 999, dtype=np.float32)
    before = run(model, x=values)
    RemoveRequantization()(model)
    RemoveUnusedNodesPass()(model)
    assert len(operators(model)) == (2 if removed else 4)
    np.testing.assert_array_equal(run(model, x=values), before)


def convolution(bias: str, weight_scale: str) -> ir.Model:
    return graph_of(f"""
    model (float[1, 1, 1, 1] x) => (float[1, 2, 1, 1] y)
    <float s = {{0.5}}, uint8 z = {{0}}, int8[2, 1, 1, 1] w = {{100, 3}}, float[2] t = {{{weight_scale}}},
     int8[2] u = {{0, 0}}, float[2] b = {{{bias}}}>
    {{
        q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)
        v = DequantizeLinear <axis = 0> (w, t, u)
        y = Conv (d, v, b)
    }}
    """)


def test_quantize_biases_stores_int32_in_the_scale_of_the_accumulator() -> None:
    model = convolution("1.3, -0.26", "0.25, 0.125")
    QuantizeBiases()(model)
    bias = model.graph[-1].inputs[2].producer()
    assert constant(bias.inputs[0]).dtype == np.int32
    assert constant(bias.inputs[0]).tolist() == [10, -4]  # 1.3 / 0.125 = 10.4 and -0.26 / 0.0625 = -4.16
    assert constant(bias.inputs[1]).tolist() == [0.125, 0.0625]
    y = run(model, x=np.full((1, 1, 1, 1), 2, np.float32)).reshape(-1)
    assert y.tolist() == [50 + 1.25, 0.75 - 0.25]


def test_quantize_biases_coarsens_a_channel_when_its_bias_does_not_fit() -> None:
    tiny = 2.0**-40
    model = convolution("1.0, 1.0", f"0.25, {tiny}")
    QuantizeBiases()(model)
    bias = model.graph[-1].inputs[2].producer()
    assert np.abs(constant(bias.inputs[0])).max() <= LIMIT
    y = run(model, x=np.zeros((1, 1, 1, 1), np.float32)).reshape(-1)
    np.testing.assert_allclose(y, [1.0, 1.0], rtol=1e-6)
    weight = model.graph[-1].inputs[1].producer()
    assert constant(weight.inputs[0]).reshape(-1).tolist() == [100, 0]  # 3 in steps 2**11 times as large
    assert math.log2(constant(weight.inputs[1])[1] / tiny) == 11


def test_quantize_biases_changes_nothing_when_the_weight_is_float() -> None:
    model = graph_of("""
    model (float[1, 1, 1, 1] x) => (float[1, 1, 1, 1] y)
    <float s = {0.5}, uint8 z = {0}, float[1, 1, 1, 1] w = {3.0}, float[1] b = {1.0}>
    { q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  y = Conv (d, w, b) }
    """)
    assert not QuantizeBiases()(model).modified


@pytest.mark.parametrize(
    ("axes", "keepdims", "expected"),
    [
        pytest.param("2, 3", 1, ["GlobalAveragePool"], id="kept"),
        pytest.param("-1, -2", 0, ["GlobalAveragePool", "Reshape"], id="dropped"),
        pytest.param("1, 2", 1, ["ReduceMean"], id="other axes"),
    ],
)
def test_use_global_pooling_only_when_the_mean_is_over_height_and_width(
    axes: str, keepdims: int, expected: list[str]
) -> None:
    output = "float[N, C, H, W]" if keepdims else "float[N, C]"
    model = graph_of(f"""
    model (float[2, 3, 4, 5] x) => ({output} y) <int64[2] axes = {{{axes}}}>
    {{ m = ReduceMean <keepdims = {keepdims}> (x, axes)  y = Identity (m) }}
    """)
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    before = run(model, x=values)
    UseGlobalPooling()(model)
    assert operators(model)[:-1] == expected
    np.testing.assert_allclose(run(model, x=values), before, rtol=1e-6, atol=1e-6)
