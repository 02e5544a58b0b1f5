"""Every pass on a small graph written by hand: what it changes, and what it must leave alone."""

import math

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_ir.passes.common import RemoveUnusedNodesPass

from targets.onnx.passes.clamp_integers import ClampIntegers
from targets.onnx.passes.fold_parameters import FoldParameters
from targets.onnx.passes.fold_weights import FoldWeights
from targets.onnx.passes.keep_softmax_in_float import KeepSoftmaxInFloat
from targets.onnx.passes.multiply_hardswish import MultiplyHardswish
from targets.onnx.passes.pack_stem import PackStem
from targets.onnx.passes.pad_depthwise import PadDepthwise
from targets.onnx.passes.quantize_biases import LARGEST_BIAS, QuantizeBiases
from targets.onnx.passes.quantize_scalars import QuantizeScalars
from targets.onnx.passes.reencode_activations import ReencodeActivations
from targets.onnx.passes.remove_requantization import RemoveRequantization
from targets.onnx.passes.repeat_gates import RepeatGates
from targets.onnx.passes.use_gemm import UseGemm
from targets.onnx.passes.use_global_pooling import UseGlobalPooling
from targets.onnx.qdq import constant, encoding

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'


def graph_of(text: str) -> ir.Model:
    return ir.from_onnx_text(f"{HEADER}\n{text}")


def inferred(model: ir.Model) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))


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


CONSTANT = """
    model (float[4] x) => (float[4] y)
    <float s = {0.25}, float t = {0.5}, float u = {1.0}, int8 z = {-3}, int8 v = {7}, int8[4] c = {-128, -1, 7, 127}>
    { q = QuantizeLinear (x, s, z)  a = DequantizeLinear (q, s, z)  b = DequantizeLinear (c, t, v)
      sum = OPERATOR (a, b)  r = QuantizeLinear (sum, u, z)  y = DequantizeLinear (r, u, z) }
"""


def test_reencode_adds_a_constant_in_the_type_of_the_activations() -> None:
    model = graph_of(CONSTANT.replace("OPERATOR", "Add"))
    values = np.array([-30.0, -1.0, 3.0, 25.0], np.float32)
    before = run(model, x=values)
    ReencodeActivations()(model)
    assert {rule.zero_point.dtype.name for node in model.graph if (rule := encoding(node))} == {"uint8"}
    np.testing.assert_array_equal(run(model, x=values), before)


def test_reencode_leaves_the_weight_of_a_product_of_matrices() -> None:
    model = graph_of(CONSTANT.replace("OPERATOR", "MatMul").replace("float[4] y", "float y"))
    ReencodeActivations()(model)
    rule = encoding(model.graph[2])
    assert rule is not None
    assert rule.zero_point.dtype == np.int8


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
def test_clamp_integers_removes_the_clamp_only_when_the_range_implies_it(
    clamp: str, scale: str, zero_point: int, removed: bool
) -> None:
    model = clamped(clamp, scale, zero_point)
    values = np.linspace(-20, 20, 4001, dtype=np.float32)
    before = run(model, x=values)
    ClampIntegers()(model)
    assert ("Clip" not in operators(model)) is removed
    np.testing.assert_array_equal(run(model, x=values), before)


def test_clamp_integers_changes_nothing_when_someone_else_reads_the_clamped_value() -> None:
    model = graph_of("""
    model (float[N] x) => (float[N] y, float[N] c) <float s = {0.1}, uint8 z = {0}>
    { c = Relu (x)  q = QuantizeLinear (c, s, z)  y = DequantizeLinear (q, s, z) }
    """)
    assert not ClampIntegers()(model).modified


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


@pytest.mark.parametrize(
    ("factor", "second", "zero_point", "removed"),
    [
        pytest.param("0.16666667", "0.003921569", 7, True, id="the scales differ by the factor"),
        pytest.param("0.16666667", "0.0039", 7, False, id="another scale"),
        pytest.param("0.16666667", "0.003921569", 8, False, id="another zero point"),
    ],
)
def test_remove_requantization_after_a_product_only_when_all_integers_return(
    factor: str, second: str, zero_point: int, removed: bool
) -> None:
    model = graph_of(f"""
    model (float[N] x) => (float[N] y)
    <float s = {{0.023529412}}, float t = {{{second}}}, uint8 z = {{7}}, uint8 u = {{{zero_point}}},
     float c = {{{factor}}}>
    {{
        a = QuantizeLinear (x, s, z)  b = DequantizeLinear (a, s, z)  p = Mul (c, b)
        q = QuantizeLinear (p, t, u)  y = DequantizeLinear (q, t, u)
    }}
    """)
    values = np.linspace(-1, 7, 999, dtype=np.float32)
    before = run(model, x=values)
    RemoveRequantization()(model)
    RemoveUnusedNodesPass()(model)
    assert ("Mul" not in operators(model)) is removed
    np.testing.assert_array_equal(run(model, x=values), before)


def with_scalar(tail: str) -> ir.Model:
    return graph_of(f"""
    model (float[N] x) => (float[N] y) <float s = {{0.05}}, float t = {{0.0625}}, uint8 z = {{7}}, float c = {{-1.3}}>
    {{ a = QuantizeLinear (x, s, z)  b = DequantizeLinear (a, s, z)  {tail} }}
    """)


@pytest.mark.parametrize("operation", ["Add (b, c)", "Add (c, b)", "Mul (c, b)"])
def test_quantize_scalars_keeps_the_number_when_a_sum_or_product_is_quantized(operation: str) -> None:
    model = with_scalar(f"m = {operation}  q = QuantizeLinear (m, t, z)  y = DequantizeLinear (q, t, z)")
    values = np.linspace(-1, 13, 999, dtype=np.float32)
    before = run(model, x=values)
    assert QuantizeScalars()(model).modified
    assert operators(model).count("DequantizeLinear") == 3
    np.testing.assert_array_equal(run(model, x=values), before)


@pytest.mark.parametrize(
    "tail", ["y = Add (b, c)", "m = Div (b, c)  q = QuantizeLinear (m, t, z)  y = DequantizeLinear (q, t, z)"]
)
def test_quantize_scalars_changes_nothing_when_there_is_no_integer_kernel(tail: str) -> None:
    assert not QuantizeScalars()(with_scalar(tail)).modified


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
    assert np.abs(constant(bias.inputs[0])).max() <= LARGEST_BIAS
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


def strided(size: int, kernel: int, stride: int, before: int, after: int, channels: int = 3) -> ir.Model:
    generator = np.random.default_rng(0)
    weights = ", ".join(map(str, generator.integers(-127, 128, 4 * channels * kernel * kernel)))
    return graph_of(f"""
    model (float[N, {channels}, {size}, {size}] x) => (float[N, 4, H, W] y)
    <float s = {{0.02}}, uint8 z = {{100}}, int8[4, {channels}, {kernel}, {kernel}] w = {{{weights}}},
     float[4] t = {{0.01, 0.02, 0.03, 0.04}}, int8[4] u = {{0, 0, 0, 0}}, float[4] b = {{1, 2, 3, 4}}>
    {{
        q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)
        v = DequantizeLinear <axis = 0> (w, t, u)
        y = Conv <strides = [{stride}, {stride}], pads = [{before}, {before}, {after}, {after}]> (d, v, b)
    }}
    """)


@settings(max_examples=25, deadline=None)
@given(
    blocks=st.integers(4, 6),
    kernel=st.integers(1, 7),
    stride=st.integers(2, 4),
    before=st.integers(0, 3),
    after=st.integers(0, 3),
)
def test_pack_stem_computes_the_same_sums_for_any_kernel_stride_and_padding(
    blocks: int, kernel: int, stride: int, before: int, after: int
) -> None:
    model = inferred(strided(blocks * stride, kernel, stride, before, after))
    values = np.random.default_rng(1).normal(size=(2, 3, blocks * stride, blocks * stride)).astype(np.float32)
    expected = run(model, x=values)
    modified = PackStem()(model).modified
    assert operators(model).count("SpaceToDepth") == int(modified)
    np.testing.assert_allclose(run(model, x=values), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "stride", "channels", "packed"),
    [
        pytest.param(8, 2, 3, True, id="image"),
        pytest.param(8, 1, 3, False, id="no stride"),
        pytest.param(7, 2, 3, False, id="odd side"),
        pytest.param(8, 2, 5, False, id="many channels"),
    ],
)
def test_pack_stem_only_when_an_image_is_strided_over(size: int, stride: int, channels: int, packed: bool) -> None:
    model = inferred(strided(size, 3, stride, 1, 1, channels))
    assert PackStem()(model).modified is packed


def separable(middle: str, channels: int = 5, depthwise: str = "[1, 1]") -> ir.Model:
    """1x1 convolution to ``channels``, depthwise 3x3, ``middle`` from ``h`` to ``m``, 1x1 convolution back."""
    generator = np.random.default_rng(0)

    def integers(name: str, *shape: int) -> str:
        values = ", ".join(map(str, generator.integers(-127, 128, int(np.prod(shape)))))
        return f"int8[{', '.join(map(str, shape))}] {name} = {{{values}}}"

    def floats(name: str, count: int) -> str:
        values = ", ".join(f"{value:.4f}" for value in generator.uniform(0.001, 0.01, count))
        return f"float[{count}] {name} = {{{values}}}"

    c = channels
    zeros = ", ".join(["0"] * c)
    return inferred(
        graph_of(f"""
        model (uint8[N, 3, 6, 6] x) => (float[N, 3, 6, 6] y)
        <float s = {{0.02}}, uint8 z = {{100}}, uint8 one = {{150}},
         {integers("w1", c, 3, 1, 1)}, {integers("w2", c, 1, 3, 3)},
         {integers("w3", 3, c, 1, 1)}, {floats("t1", c)}, {floats("t2", c)}, {floats("t3", 3)}, {floats("b1", c)},
         int32[{c}] b2 = {{{zeros}}}, int8[{c}] u = {{{zeros}}}, int8[3] u3 = {{0, 0, 0}}>
        {{
            d = DequantizeLinear (x, s, z)
            v1 = DequantizeLinear <axis = 0> (w1, t1, u)  c1 = Conv (d, v1, b1)
            q1 = QuantizeLinear (c1, s, z)  d1 = DequantizeLinear (q1, s, z)
            v2 = DequantizeLinear <axis = 0> (w2, t2, u)  v2b = DequantizeLinear <axis = 0> (b2, t2)
            c2 = Conv <group = {c}, pads = [1, 1, 1, 1], strides = {depthwise}> (d1, v2, v2b)
            q2 = QuantizeLinear (c2, s, z)  h = DequantizeLinear (q2, s, z)
            {middle}
            v3 = DequantizeLinear <axis = 0> (w3, t3, u3)  y = Conv (m, v3)
        }}
        """)
    )


SHIFT = "o = Constant <value = float {2}> ()  m = Add (h, o)"
QUANTIZED_SHIFT = "o = DequantizeLinear (one, s, z)  m = Add (h, o)"
SQUEEZE = "p = GlobalAveragePool (h)  g = HardSigmoid (p)  k = HardSwish (h)  m = Mul (k, g)"


@pytest.mark.parametrize(
    ("middle", "channels"),
    [("m = HardSwish (h)", 5), (SQUEEZE, 5), (SQUEEZE, 24), (SHIFT, 5), (QUANTIZED_SHIFT, 5)],
)
def test_pad_depthwise_gives_the_same_output_when_channels_fill_the_registers(middle: str, channels: int) -> None:
    model = separable(middle, channels)
    values = np.random.default_rng(1).integers(0, 256, (2, 3, 6, 6), dtype=np.uint8)
    expected = run(model, x=values)
    assert PadDepthwise()(model).modified
    groups = [node.attributes.get_int("group", 1) for node in model.graph if node.op_type == "Conv"]
    assert groups == [1, -(-channels // 16) * 16, 1]
    np.testing.assert_allclose(run(model, x=values), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("middle", "channels"),
    [
        pytest.param("m = Identity (h)", 16, id="full already"),
        pytest.param("m = Transpose <perm = [0, 1, 3, 2]> (h)", 5, id="unknown reader"),
        pytest.param("a = Shape (h)  f = Cast <to = 1> (a)  r = ReduceSum (f)  m = Mul (h, r)", 5, id="shape is read"),
    ],
)
def test_pad_depthwise_changes_nothing_when_the_channels_cannot_be_widened(middle: str, channels: int) -> None:
    assert not PadDepthwise()(separable(middle, channels)).modified


def test_clamp_integers_clips_behind_the_quantizer_when_the_range_is_wider() -> None:
    model = clamped("Clip (x, low, high)", "0.1", 50)
    values = np.linspace(-20, 20, 4001, dtype=np.float32)
    before = run(model, x=values)
    ClampIntegers()(model)
    assert operators(model) == ["QuantizeLinear", "Clip", "DequantizeLinear"]
    assert [int(constant(value)) for value in model.graph[1].inputs[1:]] == [50, 110]
    np.testing.assert_array_equal(run(model, x=values), before)


def linear(rank3: str, transposed: bool, bias: str = "b") -> ir.Model:
    weight, shape, axis = ("t", "[2, 3]", 0) if transposed else ("v", "[3, 2]", 1)
    return inferred(
        graph_of(f"""
        model (uint8{rank3} x) => (float[N, 5, 2] y)
        <float s = {{0.02}}, uint8 z = {{100}}, int8{shape} w = {{1, -2, 3, 40, 50, -60}}, float[2] ws = {{0.1, 0.2}},
         int8[2] u = {{0, 0}}, float[2] b = {{0.5, -0.5}}, float[5, 2] c = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}}>
        {{
            d = DequantizeLinear (x, s, z)  v = DequantizeLinear <axis = {axis}> (w, ws, u)
            t = Transpose <perm = [1, 0]> (v)  m = MatMul (d, {weight})  a = Add (m, {bias})
            q = QuantizeLinear (a, s, z)  y = DequantizeLinear (q, s, z)
        }}
        """)
    )


@pytest.mark.parametrize("transposed", [True, False])
def test_use_gemm_gives_the_same_rows_when_a_linear_layer_has_three_axes(transposed: bool) -> None:
    model = linear("[N, 5, 3]", transposed)
    values = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    before = run(model, x=values)
    assert UseGemm()(model).modified
    RemoveUnusedNodesPass()(model)
    assert "MatMul" not in operators(model)
    np.testing.assert_array_equal(run(model, x=values), before)


@pytest.mark.parametrize(("rank3", "bias"), [("[N, K, 3]", "b"), ("[N, 5, 3]", "c")], ids=["dynamic", "bias matrix"])
def test_use_gemm_changes_nothing_when_it_cannot_reshape_or_add(rank3: str, bias: str) -> None:
    assert not UseGemm()(linear(rank3, True, bias)).modified


def test_keep_softmax_in_float_gives_the_same_numbers_and_no_integer_softmax() -> None:
    model = inferred(
        graph_of("""
        model (uint8[N, 4] x) => (float[N, 4] y)
        <float s = {0.03}, uint8 z = {100}, float o = {0.00390625}, uint8 e = {0}>
        {
            d = DequantizeLinear (x, s, z)  p = Softmax (d)
            q = QuantizeLinear (p, o, e)  y = DequantizeLinear (q, o, e)
        }
        """)
    )
    values = np.random.default_rng(0).integers(0, 256, (50, 4), dtype=np.uint8)
    before = run(model, x=values)
    assert KeepSoftmaxInFloat()(model).modified
    RemoveUnusedNodesPass()(model)
    np.testing.assert_array_equal(run(model, x=values), before)
    proto = ir.to_proto(model).SerializeToString()
    fused = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"]).run(None, {"x": values})[0]
    np.testing.assert_array_equal(fused, before)


def test_fold_parameters_stores_floats_only_when_a_normalization_reads_them() -> None:
    model = inferred(
        graph_of("""
        model (float[N, 4] x) => (float[N, 4] y)
        <float s = {0.03}, int8 z = {-3}, int8[4] g = {40, 50, -60, 7}, int8[4] b = {1, 2, 3, 4}>
        {
            d = DequantizeLinear (g, s, z)  e = DequantizeLinear (b, s, z)
            n = LayerNormalization (x, d)  y = Add (n, e)
        }
        """)
    )
    values = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    before = run(model, x=values)
    FoldParameters()(model)
    assert operators(model) == ["DequantizeLinear", "LayerNormalization", "Add"]
    np.testing.assert_array_equal(run(model, x=values), before)


def hardswish(scale: float, zero_point: int, out_scale: float, dtype: str = "uint8", reader: str = "") -> ir.Model:
    return inferred(
        graph_of(f"""
        model ({dtype}[N] x) => (float[N] y)
        <float s = {{{scale}}}, {dtype} z = {{{zero_point}}}, float t = {{{out_scale}}}, {dtype} w = {{9}}>
        {{
            d = DequantizeLinear (x, s, z)  h = HardSwish (d)
            q = QuantizeLinear (h, t, w)  e = DequantizeLinear (q, t, w)  {reader or "y = Identity (e)"}
        }}
        """)
    )


INTEGERS = {"uint8": np.arange(256, dtype=np.uint8), "int8": np.arange(-128, 128, dtype=np.int8)}


@pytest.mark.parametrize(
    ("scale", "zero_point", "dtype", "clips"),
    [
        pytest.param(0.03125, 96, "uint8", True, id="exact"),
        pytest.param(0.03125, -32, "int8", True, id="int8"),
        pytest.param(0.0234375, 128, "uint8", False, id="ends below 3"),
        pytest.param(0.0411071777, 73, "uint8", True, id="3 is 73.0 steps, nearly"),
    ],
)
def test_multiply_hardswish_gives_the_same_integers_when_three_is_a_whole_number_of_steps(
    scale: float, zero_point: int, dtype: str, clips: bool
) -> None:
    model = hardswish(scale, zero_point, 0.0207, dtype)
    before = run(model, x=INTEGERS[dtype])
    assert MultiplyHardswish()(model).modified
    assert "HardSwish" not in operators(model)
    assert ("Clip" in operators(model)) == clips
    np.testing.assert_array_equal(run(model, x=INTEGERS[dtype]), before)
    proto = ir.to_proto(model).SerializeToString()
    fused = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"]).run(None, {"x": INTEGERS[dtype]})
    np.testing.assert_array_equal(fused[0], before)


@pytest.mark.parametrize(
    ("scale", "zero_point", "reader"),
    [
        pytest.param(0.03125, 97, "", id="begins below -3"),
        pytest.param(0.0309, 96, "", id="3 is between two steps"),
        pytest.param(0.03125, 96, "y = Add (h, e)", id="another reader"),
    ],
)
def test_multiply_hardswish_changes_nothing_when_an_integer_would_differ(
    scale: float, zero_point: int, reader: str
) -> None:
    assert not MultiplyHardswish()(hardswish(scale, zero_point, 0.0207, reader=reader)).modified


GATED = """
model (uint8[N, 3, {height}, {width}] x, uint8[N, 3, {gate}] g) => (uint8[N, 3, {height}, {width}] y)
<float s = {{0.05}}, uint8 z = {{128}}, float sg = {{0.00390625}}, uint8 zg = {{0}}>
{{
    xd = DequantizeLinear (x, s, z)
    gd = DequantizeLinear (g, sg, zg)
    p = Mul ({order})
    y = QuantizeLinear (p, s, z)
}}
"""


@pytest.mark.parametrize("order", ["xd, gd", "gd, xd"])
def test_repeat_gates_gives_the_same_product_when_the_image_is_large(order: str) -> None:
    model = inferred(graph_of(GATED.format(height=16, width=40, gate="1, 1", order=order)))
    random = np.random.default_rng(0)
    images, gates = (random.integers(0, 256, shape, dtype=np.uint8) for shape in ((2, 3, 16, 40), (2, 3, 1, 1)))
    before = run(model, x=images, g=gates)
    assert RepeatGates()(model).modified
    RemoveUnusedNodesPass()(model)
    assert sorted(operators(model)) == ["DequantizeLinear", "DequantizeLinear", "Mul", "QuantizeLinear", "Tile"]
    tile = next(node for node in model.graph if node.op_type == "Tile")
    assert tile.outputs[0].shape is not None
    assert list(tile.outputs[0].shape)[1:] == [3, 1, 40]
    np.testing.assert_array_equal(run(model, x=images, g=gates), before)


@pytest.mark.parametrize(
    ("height", "width", "gate"),
    [("16", "31", "1, 1"), ("H", "W", "1, 1"), ("16", "40", "16, 40"), ("16", "40", "1, 40")],
    ids=["small", "sizes that vary", "no gate", "a gate per column"],
)
def test_repeat_gates_changes_nothing_when_no_call_is_saved(height: str, width: str, gate: str) -> None:
    model = inferred(graph_of(GATED.format(height=height, width=width, gate=gate, order="xd, gd")))
    assert not RepeatGates()(model).modified
