"""Pads and the windows of pools: the passes on small graphs, and whole files against PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor, nn
from torch.nn import functional as F

import targets
from pipeline import Budget, QuantizeConfig, TensorSpec, from_dataset, from_module, quantize
from targets.onnx.passes.bound_windows import BoundWindows
from targets.onnx.passes.keep_pads import KeepPads
from targets.onnx.passes.merge_pads import MergePads
from targets.onnx.passes.pad_integers import PadIntegers
from targets.onnx.passes.remove_requantization import RemoveRequantization
from targets.onnx.placement import kernels
from tests.targets.onnx.test_passes import graph_of, inferred, operators, run

X = np.random.default_rng(0).normal(0.5, 2, (2, 2, 6, 7)).astype(np.float32)


def optimized(model: ir.Model, x: np.ndarray) -> np.ndarray:
    """The model as onnxruntime really runs it, with every rewrite of its own."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def padded(reader: str, *, zero_point: int = 100, value: str = "0", pads: str = "0, 0, 1, 0, 0, 0, 2, 1") -> ir.Model:
    return inferred(
        graph_of(f"""
    model (float[2, 2, 6, 7] x) => (float[2, N, H, W] y)
    <float s = {{0.03}}, uint8 z = {{{zero_point}}}, int64[8] p = {{{pads}}}, float c = {{{value}}},
     int8[1, 2, 3, 3] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, -1, -2, -3, -4, -5, -6, -7, -8, -9}}, float t = {{0.5}},
     int8 u = {{0}}>
    {{
        q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)
        a = Pad (d, p, c)
        b = QuantizeLinear (a, s, z)  e = DequantizeLinear (b, s, z)  v = DequantizeLinear (w, t, u)
        y = {reader}
    }}
    """)
    )


@pytest.mark.parametrize(
    ("reader", "zero_point", "value", "merged"),
    [
        pytest.param("Conv (e, v)", 100, "0", True, id="convolution"),
        pytest.param("Conv <strides = [2, 2], pads = [1, 0, 0, 1]> (e, v)", 100, "0", True, id="that pads already"),
        pytest.param("Conv (e, v)", 100, "1", False, id="another number"),
        pytest.param("MaxPool <kernel_shape = [3, 3]> (e)", 0, "0", True, id="maximum, never negative"),
        pytest.param("MaxPool <kernel_shape = [3, 3]> (e)", 100, "-inf", True, id="maximum, minus infinity"),
        pytest.param("MaxPool <kernel_shape = [3, 3]> (e)", 100, "0", False, id="maximum, zero is in the middle"),
        pytest.param("MaxPool <kernel_shape = [2, 2]> (e)", 0, "0", False, id="kernel within the padding"),
        pytest.param("AveragePool <kernel_shape = [3, 3]> (e)", 100, "0", True, id="mean"),
        pytest.param("AveragePool <kernel_shape = [3, 3], pads = [1, 0, 1, 0]> (e)", 100, "0", False, id="mean, twice"),
        pytest.param("Relu (e)", 100, "0", False, id="another operator"),
    ],
)
def test_merge_pads_only_when_the_reader_pads_alike(reader: str, zero_point: int, value: str, merged: bool) -> None:
    model = padded(reader, zero_point=zero_point, value=value)
    expected = run(model, x=X)
    assert MergePads()(model).modified == merged
    RemoveUnusedNodesPass()(model)
    assert ("Pad" in operators(model)) == (not merged)
    np.testing.assert_array_equal(run(model, x=X), expected)


def test_merge_pads_leaves_channels_and_crops_alone() -> None:
    for pads in ("0, 1, 0, 0, 0, 1, 0, 0", "0, 0, -1, 0, 0, 0, 0, 0"):
        assert not MergePads()(padded("Relu (e)", pads=pads)).modified


@pytest.mark.parametrize(
    ("value", "pads"),
    [
        pytest.param("0", "0, 1, 0, 0, 0, 1, 0, 0", id="channels"),
        pytest.param("-0.31", "0, 0, 1, 2, 0, 0, 0, 1", id="on the grid"),
        pytest.param("99", "0, 0, 1, 2, 0, 0, 0, 1", id="beyond the grid"),
        pytest.param("-inf", "0, 0, -1, 2, 0, 0, 0, 1", id="minus infinity, and a crop"),
    ],
)
def test_pad_integers_writes_what_the_quantizer_makes_of_the_number(value: str, pads: str) -> None:
    model = padded("Relu (e)", value=value, pads=pads)
    expected = run(model, x=X)
    PadIntegers()(model)
    RemoveRequantization()(model)
    RemoveUnusedNodesPass()(model)
    assert operators(model)[:3] == ["QuantizeLinear", "Pad", "DequantizeLinear"]
    np.testing.assert_array_equal(run(model, x=X), expected)


def test_keep_pads_when_a_pool_reads_zeros_beside_negative_values() -> None:
    model = inferred(
        graph_of("""
    model (float[2, 2, 6, 7] x) => (float[2, 2, H, W] y) <int64[8] p = {0, 0, 0, 0, 0, 0, 1, 1}, float c = {0}>
    { a = Pad (x, p, c)  y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [0, 0, 0, 0]> (a) }
    """)
    )
    KeepPads()(model)
    expected = F.max_pool2d(F.pad(torch.from_numpy(X - 9), (0, 1, 0, 1)), 3, 2).numpy()
    np.testing.assert_array_equal(optimized(model, X - 9), expected)


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(5, 9),
    kernel=st.integers(2, 4),
    stride=st.integers(1, 4),
    padding=st.integers(0, 1),
    counts=st.booleans(),
)
def test_bound_windows_gives_the_mean_of_the_integer_kernel(
    size: int, kernel: int, stride: int, padding: int, counts: bool
) -> None:
    integers = np.random.default_rng(size).integers(0, 255, (1, 2, size, 7)).astype(np.float32)
    expected = F.avg_pool2d(torch.from_numpy(integers) - 100, kernel, stride, padding, True, counts).numpy() + 100
    attributes = f"kernel_shape = [{kernel}, {kernel}], strides = [{stride}, {stride}], ceil_mode = 1"
    around = ", ".join([str(padding)] * 4)
    model = graph_of(f"""
    model (float[1, 2, {size}, 7] x) => (float[1, 2, {expected.shape[2]}, {expected.shape[3]}] y)
    <float s = {{1}}, uint8 z = {{100}}, float o = {{-100}}>
    {{
        a = Add (x, o)  q = QuantizeLinear (a, s, z)  d = DequantizeLinear (q, s, z)
        m = AveragePool <{attributes}, pads = [{around}], count_include_pad = {int(counts)}> (d)
        r = QuantizeLinear (m, s, z)  y = DequantizeLinear (r, s, z)
    }}
    """)
    model = inferred(model)
    pool = next(node for node in model.graph if node.op_type == "AveragePool")
    pool.outputs[0].shape = ir.Shape(expected.shape)  # as the exporter writes it: onnx counts windows in the padding
    BoundWindows()(model)
    PadIntegers()(model)
    assert np.abs(optimized(model, integers) + 100 - expected).max() <= 0.5 + 1e-4


def test_bound_windows_keeps_a_pool_in_float_when_the_size_is_dynamic() -> None:
    model = graph_of("""
    model (float[1, 2, H, W] x) => (float[1, 2, I, J] y) <float s = {0.06}, uint8 z = {100}>
    {
        q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)
        m = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (d)
        r = QuantizeLinear (m, s, z)  y = DequantizeLinear (r, s, z)
    }
    """)
    BoundWindows()(model)
    found = optimized(model, X[:1])
    expected = F.avg_pool2d(torch.from_numpy(X[:1]), 3, 2, ceil_mode=True).numpy()
    assert np.abs(found - expected).max() <= 0.06


class Padded(nn.Module):
    """A convolution, what the case is about, and a convolution."""

    def __init__(self, middle: Callable[[Tensor], Tensor], *, rectified: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.middle, self.rectified = middle, rectified

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.middle(F.relu(x) if self.rectified else x))


def same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """TensorFlow's SAME: the larger half of the padding at the end."""
    height, width = (
        max((math.ceil(size / stride) - 1) * stride + kernel - size, 0) for size in (x.shape[-2], x.shape[-1])
    )
    return F.pad(x, [width // 2, width - width // 2, height // 2, height - height // 2], value=value)


DEPTHWISE = torch.linspace(-1, 1, 16 * 25).reshape(16, 1, 5, 5)


@pytest.mark.parametrize(
    ("middle", "rectified", "pads"),
    [
        pytest.param(lambda x: F.conv2d(same(x, 5, 2), DEPTHWISE, None, 2, groups=16), True, 0, id="depthwise, SAME"),
        pytest.param(lambda x: F.max_pool2d(same(x, 3, 2, -math.inf), 3, 2), False, 0, id="maximum, SAME"),
        pytest.param(lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2), False, 1, id="maximum beside zeros"),
        pytest.param(lambda x: F.pad(x, (1, 0, 2, 0), value=0.7), True, 1, id="another number"),
        pytest.param(lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True), True, 0, id="mean, ceil_mode"),
        pytest.param(lambda x: F.avg_pool2d(x, 3, 2, divisor_override=4), True, 0, id="mean, divisor"),
    ],
)
def test_file_is_all_integers_and_follows_torch(
    middle: Callable[[Tensor], Tensor], rectified: bool, pads: int, tmp_path: Path
) -> None:
    specs = [TensorSpec(name="x", shape=(3, 10, 11))]
    x = torch.randn(16, 3, 10, 11, generator=torch.Generator().manual_seed(1))
    model = from_module(Padded(middle, rectified=rectified).eval(), specs)
    config = QuantizeConfig(observers=("minmax",), bias_correction=False, equalisation=False, mixed_precision=False)
    program = quantize(model, config, from_dataset([(each,) for each in x], specs), budget=Budget(metric="agreement"))
    target = targets.get("onnx")
    original, lowered = (target.lower(each, tmp_path, name=name) for each, name in ((model, "fp32"), (program, "int8")))
    with torch.no_grad():
        expected, rounded = model.module(x), program.module(x)
    (found,) = target.load(original, threads=1).run((x.numpy(),))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    (found,) = target.load(lowered, threads=1).run((x.numpy(),))
    np.testing.assert_allclose(found, rounded.numpy(), atol=1e-5)
    executed = kernels(lowered)
    assert [kernel.op for kernel in executed if not kernel.on_integers] == []
    assert [kernel.op for kernel in executed].count("Pad") == pads
