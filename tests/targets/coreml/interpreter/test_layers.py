"""Convolution, pooling, matrix products, normalization, recurrence and resizing against onnxruntime and NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from targets.coreml.interpreter.operators.linear import matmul
from tests.targets.coreml.interpreter.mil import Array, Case, floats, mb, onnx_runs

IMAGE = floats(2, 4, 9, 11)
WEIGHT = floats(6, 4, 3, 3, seed=1)
BIAS = floats(6, seed=2)


def _conv(name: str, x: Array, weight: Array, mil: dict[str, Any], onnx: dict[str, Any]) -> Case:
    return Case(
        name,
        lambda x: mb.conv(x=x, weight=weight, bias=BIAS, **mil),
        lambda x: onnx_runs("Conv", **onnx)(x, weight, BIAS),
        (x,),
        atol=1e-5,
    )


def _transposed(name: str, x: Array, weight: Array, mil: dict[str, Any], onnx: dict[str, Any]) -> Case:
    bias = floats(weight.shape[1] * mil.get("groups", 1), seed=3)
    return Case(
        name,
        lambda x: mb.conv_transpose(x=x, weight=weight, bias=bias, **mil),
        lambda x: onnx_runs("ConvTranspose", **onnx)(x, weight, bias),
        (x,),
        atol=1e-5,
    )


def _pool(name: str, mil: dict[str, Any], onnx: dict[str, Any], x: Array = IMAGE, op: str = "AveragePool") -> Case:
    build = getattr(mb, name.split(" ")[0])
    return Case(name, lambda x: build(x=x, **mil), onnx_runs(op, **onnx), (x,))


def _onnx_lstm_order(weight: Array) -> Array:
    """MIL's gates (input, forget, output, cell) in ONNX's order (input, output, forget, cell)."""
    i, f, o, z = np.split(weight, 4)
    return np.concatenate([i, o, f, z])


def _lstm(name: str, direction: str, **mil: Any) -> Case:
    steps, batch, inputs, hidden = 5, 2, 3, 4
    both = 2 if direction == "bidirectional" else 1
    x = floats(steps, batch, inputs)
    h, c = floats(batch, both * hidden, seed=1), floats(batch, both * hidden, seed=2)
    w = [floats(4 * hidden, inputs, seed=3 + index) for index in range(both)]
    r = [floats(4 * hidden, hidden, seed=5 + index) for index in range(both)]
    b = [floats(4 * hidden, seed=7 + index) for index in range(both)]
    p = [floats(3 * hidden, seed=9 + index) for index in range(both)] if mil.pop("peephole", False) else None
    back: dict[str, Any] = {}
    if both == 2:
        back = {"weight_ih_back": w[1], "weight_hh_back": r[1], "bias_back": b[1]}
        if p:
            back["peephole_back"] = p[1]
    if p:
        back["peephole"] = p[0]

    def build(x: Any, h: Any, c: Any) -> Any:
        return mb.lstm(
            x=x,
            initial_h=h,
            initial_c=c,
            weight_ih=w[0],
            weight_hh=r[0],
            bias=b[0],
            direction=direction,
            output_sequence=True,
            **back,
            **mil,
        )

    def oracle(x: Array, h: Array, c: Array) -> Any:
        def stacked(parts: list[Array]) -> Array:
            return np.stack([_onnx_lstm_order(part) for part in parts])

        bias = np.concatenate([stacked(b), np.zeros((both, 4 * hidden), np.float32)], axis=1)
        peep = None
        if p:
            peep = np.stack(
                [np.concatenate([part[:4], part[8:], part[4:8]]) for part in p]
            )  # ONNX: input, output, forget
        start_h, start_c = (np.stack(np.split(part, both, axis=1)) for part in (h, c))
        y, final_h, final_c = onnx_runs("LSTM", outputs=3, hidden_size=hidden, direction=direction)(
            x, stacked(w), stacked(r), bias, None, start_h, start_c, *([peep] if peep is not None else [])
        )
        sequence = y.transpose(0, 2, 1, 3).reshape(steps, batch, -1)
        return sequence, np.concatenate(list(final_h), axis=1), np.concatenate(list(final_c), axis=1)

    return Case(name, build, oracle, (x, h, c), atol=1e-5)


def _gru_oracle(x: Array, h: Array, w: Array, r: Array, b: Array) -> tuple[Array, Array]:
    def sigmoid(v: Array) -> Array:
        return 1 / (1 + np.exp(-v))

    states = []
    for step in x:
        (x_r, x_o, x_z), (h_r, h_o, h_z) = np.split(step @ w.T + b, 3, axis=1), np.split(h @ r.T, 3, axis=1)
        z = sigmoid(x_z + h_z)
        h = (1 - z) * np.tanh(x_o + sigmoid(x_r + h_r) * h_o) + z * h
        states.append(h)
    return np.stack(states), h


GRU = (floats(9, 3, seed=1), floats(9, 3, seed=2), floats(9, seed=3))
RNN = (floats(4, 3, seed=1), floats(4, 4, seed=2), floats(4, seed=3))


def _rnn_oracle(x: Array, h: Array) -> tuple[Array, Array]:
    for step in x[::-1]:
        h = np.maximum(step @ RNN[0].T + RNN[2] + h @ RNN[1].T, 0)
    return h[None], h


def _variance_normalized(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    mean = x.mean(axes, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + epsilon)


def _resize(name: str, size: tuple[int, int], mode: str, onnx: dict[str, Any]) -> Case:
    sizes = np.array([2, 4, *size], np.int64)

    def oracle(x: Array) -> Any:
        return onnx_runs("Resize", mode="linear", **onnx)(x, None, None, sizes)

    def build(x: Any) -> Any:
        return mb.resize_bilinear(x=x, target_size_height=size[0], target_size_width=size[1], sampling_mode=mode)

    return Case(name, build, oracle, (IMAGE,), atol=1e-5)


def _default_linear(x: Array, size: int) -> Array:
    """The last axis resized by ``DEFAULT`` sampling, sample by sample."""
    points = np.minimum(np.arange(size) * x.shape[-1] / size, x.shape[-1] - 1)
    return np.stack([np.interp(points, np.arange(x.shape[-1]), row) for row in x.reshape(-1, x.shape[-1])]).reshape(
        *x.shape[:-1], size
    )


COORDINATES = floats(2, 5, 6, 2, low=-1.4, high=1.4)
HALF_PIXEL = {"coordinate_transformation_mode": "half_pixel"}
TURN = np.array([[0.8, -0.3, 0.1, 0.2, 0.9, -0.2]], np.float32)


def _resample(name: str, mode: str, padding: str, onnx_padding: str, align: bool) -> Case:
    def build(x: Any, points: Any) -> Any:
        return mb.resample(
            x=x,
            coordinates=points,
            sampling_mode=mode,
            padding_mode=padding,
            padding_value=np.float32(0),
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=align,
        )

    oracle = onnx_runs(
        "GridSample", mode="linear" if mode == "bilinear" else mode, padding_mode=onnx_padding, align_corners=int(align)
    )
    return Case(name, build, oracle, (IMAGE, COORDINATES), atol=1e-5)


def _affine_oracle(x: Array) -> Any:
    y, column = np.meshgrid(np.linspace(-1, 1, 7), np.linspace(-1, 1, 5), indexing="ij")
    points = np.stack([column, y, np.ones_like(y)], -1) @ TURN.reshape(2, 3).T
    grid = np.repeat(points[None], 2, axis=0).astype(np.float32)
    return onnx_runs("GridSample", mode="linear", padding_mode="zeros", align_corners=1)(x, grid)


CASES = [
    _conv("conv", IMAGE, WEIGHT, {}, {}),
    _conv("conv strided", IMAGE, WEIGHT, {"strides": [2, 3]}, {"strides": [2, 3]}),
    _conv(
        "conv padded unevenly and dilated",
        IMAGE,
        WEIGHT,
        {"pad_type": "custom", "pad": [0, 1, 2, 1], "dilations": [2, 1]},
        {"pads": [0, 2, 1, 1], "dilations": [2, 1]},
    ),
    _conv("conv grouped", IMAGE, floats(6, 2, 3, 3, seed=1), {"groups": 2}, {"group": 2}),
    _conv(
        "conv same",
        IMAGE,
        floats(6, 4, 4, 2, seed=1),
        {"pad_type": "same", "strides": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    ),
    _conv(
        "conv same_lower",
        IMAGE,
        floats(6, 4, 4, 2, seed=1),
        {"pad_type": "same_lower", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    ),
    _conv("conv of one dimension", floats(2, 4, 9), floats(6, 4, 3, seed=1), {"strides": [2]}, {"strides": [2]}),
    _conv("conv of three dimensions", floats(1, 4, 4, 5, 6), floats(6, 4, 2, 3, 2, seed=1), {}, {}),
    _transposed("conv_transpose", IMAGE, floats(4, 3, 3, 3, seed=1), {"strides": [2, 2]}, {"strides": [2, 2]}),
    _transposed(
        "conv_transpose padded and grouped",
        IMAGE,
        floats(4, 3, 3, 4, seed=1),
        {"strides": [2, 1], "pad_type": "custom", "pad": [1, 0, 2, 1], "groups": 2},
        {"strides": [2, 1], "pads": [1, 2, 0, 1], "group": 2},
    ),
    _transposed(
        "conv_transpose with output shape",
        IMAGE,
        floats(4, 3, 3, 3, seed=1),
        {"strides": [2, 2], "pad_type": "custom", "pad": [1, 1, 1, 1], "output_shape": [2, 3, 18, 22]},
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    ),
    _transposed(
        "conv_transpose same",
        IMAGE,
        floats(4, 3, 3, 3, seed=1),
        {"strides": [2, 2], "pad_type": "same"},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    ),
    _transposed(
        "conv_transpose of one dimension",
        floats(2, 4, 5),
        floats(4, 3, 3, seed=1),
        {"dilations": [2]},
        {"dilations": [2]},
    ),
    _pool("max_pool", {"kernel_sizes": [3, 2], "pad_type": "valid"}, {"kernel_shape": [3, 2]}, op="MaxPool"),
    _pool(
        "max_pool padded unevenly",
        {"kernel_sizes": [3, 3], "strides": [2, 2], "pad_type": "custom", "pad": [0, 1, 1, 0]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 1, 0]},
        op="MaxPool",
    ),
    _pool(
        "max_pool same",
        {"kernel_sizes": [2, 2], "strides": [2, 2], "pad_type": "same"},
        {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        op="MaxPool",
    ),
    _pool(
        "max_pool ceil",
        {"kernel_sizes": [2, 2], "strides": [2, 2], "pad_type": "custom", "pad": [0, 0, 0, 0], "ceil_mode": True},
        {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
        op="MaxPool",
    ),
    _pool(
        "max_pool of one dimension",
        {"kernel_sizes": [3], "pad_type": "valid"},
        {"kernel_shape": [3]},
        floats(2, 3, 8),
        "MaxPool",
    ),
    _pool(
        "avg_pool",
        {"kernel_sizes": [3, 3], "strides": [2, 2], "pad_type": "valid"},
        {"kernel_shape": [3, 3], "strides": [2, 2]},
    ),
    _pool(
        "avg_pool counting the padding",
        {"kernel_sizes": [3, 3], "pad_type": "custom", "pad": [1, 0, 1, 2]},
        {"kernel_shape": [3, 3], "pads": [1, 1, 0, 2], "count_include_pad": 1},
    ),
    _pool(
        "avg_pool leaving the padding out",
        {"kernel_sizes": [3, 3], "pad_type": "custom", "pad": [1, 0, 1, 2], "exclude_padding_from_average": True},
        {"kernel_shape": [3, 3], "pads": [1, 1, 0, 2], "count_include_pad": 0},
    ),
    _pool(
        "avg_pool same",
        {"kernel_sizes": [3, 2], "strides": [2, 2], "pad_type": "same", "exclude_padding_from_average": True},
        {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    ),
    _pool(
        "avg_pool of three dimensions",
        {"kernel_sizes": [2, 2, 2], "pad_type": "valid"},
        {"kernel_shape": [2, 2, 2]},
        floats(1, 2, 4, 5, 6),
    ),
    _pool("l2_pool", {"kernel_sizes": [3, 2], "pad_type": "valid"}, {"kernel_shape": [3, 2], "p": 2}, op="LpPool"),
    Case(
        "linear",
        lambda x: mb.linear(x=x, weight=WEIGHT[:, :, 0, 0], bias=BIAS),
        lambda x: x @ WEIGHT[:, :, 0, 0].T + BIAS,
        (floats(2, 5, 4),),
        atol=1e-5,
    ),
    Case(
        "linear without bias",
        lambda x: mb.linear(x=x, weight=WEIGHT[:, :, 0, 0]),
        lambda x: x @ WEIGHT[:, :, 0, 0].T,
        (floats(4),),
        atol=1e-5,
    ),
    Case(
        "matmul",
        lambda x, y: mb.matmul(x=x, y=y),
        np.matmul,
        (floats(10, 4, 3), floats(5, 10, 3, 2, seed=1)),
        atol=1e-5,
    ),
    Case(
        "matmul transposed",
        lambda x, y: mb.matmul(x=x, y=y, transpose_x=True, transpose_y=True),
        lambda x, y: np.matmul(x.swapaxes(-1, -2), y.swapaxes(-1, -2)),
        (floats(2, 3, 4), floats(2, 5, 3, seed=1)),
        atol=1e-5,
    ),
    Case(
        "einsum",
        lambda x, y: mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"),
        lambda x, y: np.einsum("nchw,nwhu->nchu", x, y),
        (floats(2, 3, 4, 5), floats(2, 5, 4, 3, seed=1)),
        atol=1e-5,
    ),
    Case(
        "einsum of rank 3",
        lambda x, y: mb.einsum(values=(x, y), equation="abc,cbd->abd"),
        lambda x, y: np.einsum("abc,cbd->abd", x, y),
        (floats(3, 4, 5), floats(5, 4, 3, seed=1)),
        atol=1e-5,
    ),
    Case(
        "scaled_dot_product_attention",
        lambda q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v),
        lambda q, k, v: onnx_runs("Softmax", axis=-1)(q @ k.swapaxes(-1, -2) / np.sqrt(np.float32(8))) @ v,
        (floats(2, 3, 5, 8), floats(2, 3, 6, 8, seed=1), floats(2, 3, 6, 4, seed=2)),
        atol=1e-5,
    ),
    Case(
        "scaled_dot_product_attention masked",
        lambda q, k, v, m: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=m),
        lambda q, k, v, m: onnx_runs("Softmax", axis=-1)(q @ k.swapaxes(-1, -2) / np.sqrt(np.float32(8)) + m) @ v,
        (floats(2, 3, 5, 8), floats(2, 3, 6, 8, seed=1), floats(2, 3, 6, 4, seed=2), floats(5, 6, seed=3)),
        atol=1e-5,
    ),
    Case(
        "batch_norm",
        lambda x: mb.batch_norm(
            x=x, mean=BIAS[:4], variance=np.exp(BIAS[:4]), gamma=BIAS[1:5], beta=BIAS[2:6], epsilon=np.float32(1e-3)
        ),
        lambda x: onnx_runs("BatchNormalization", epsilon=1e-3)(x, BIAS[1:5], BIAS[2:6], BIAS[:4], np.exp(BIAS[:4])),
        (IMAGE,),
        atol=1e-5,
    ),
    Case(
        "instance_norm",
        lambda x: mb.instance_norm(x=x, gamma=BIAS[:4], beta=BIAS[1:5], epsilon=np.float32(1e-3)),
        lambda x: onnx_runs("InstanceNormalization", epsilon=1e-3)(x, BIAS[:4], BIAS[1:5]),
        (IMAGE,),
        atol=1e-5,
    ),
    Case(
        "layer_norm",
        lambda x: mb.layer_norm(
            x=x, axes=[2, -1], gamma=floats(9, 11, seed=4), beta=floats(9, 11, seed=5), epsilon=np.float32(1e-5)
        ),
        lambda x: _variance_normalized(x, (2, 3), 1e-5) * floats(9, 11, seed=4) + floats(9, 11, seed=5),
        (IMAGE,),
        atol=1e-5,
    ),
    Case(
        "layer_norm of one axis in the middle",
        lambda x: mb.layer_norm(x=x, axes=[1], epsilon=np.float32(1e-5)),
        lambda x: _variance_normalized(x, (1,), 1e-5),
        (IMAGE,),
        atol=1e-5,
    ),
    Case(
        "l2_norm",
        lambda x: mb.l2_norm(x=x, epsilon=np.float32(1e-6)),
        lambda x: x / np.sqrt((x**2).sum((1, 2, 3), keepdims=True) + 1e-6),
        (IMAGE,),
    ),
    Case(
        "local_response_norm",
        lambda x: mb.local_response_norm(x=x, size=3, alpha=np.float32(0.1), beta=np.float32(0.6), k=np.float32(1.5)),
        onnx_runs("LRN", size=3, alpha=0.1, beta=0.6, bias=1.5),
        (IMAGE,),
    ),
    _lstm("lstm", "forward"),
    _lstm("lstm reversed", "reverse"),
    _lstm("lstm in both directions", "bidirectional"),
    _lstm("lstm with peepholes", "forward", peephole=True),
    Case(
        "gru",
        lambda x, h: mb.gru(x=x, initial_h=h, weight_ih=GRU[0], weight_hh=GRU[1], bias=GRU[2], output_sequence=True),
        lambda x, h: _gru_oracle(x, h, *GRU),
        (floats(4, 2, 3), floats(2, 3, seed=4)),
        atol=1e-5,
    ),
    Case(
        "rnn reversed, last step only",
        lambda x, h: mb.rnn(
            x=x, initial_h=h, weight_ih=RNN[0], weight_hh=RNN[1], bias=RNN[2], direction="reverse", activation="relu"
        ),
        _rnn_oracle,
        (floats(4, 2, 3), floats(2, 4, seed=4)),
        atol=1e-5,
    ),
    _resize("resize_bilinear half pixel", (5, 20), "UNALIGN_CORNERS", HALF_PIXEL),
    _resize(
        "resize_bilinear aligned", (5, 20), "STRICT_ALIGN_CORNERS", {"coordinate_transformation_mode": "align_corners"}
    ),
    _resize("resize_bilinear default", (18, 22), "DEFAULT", {"coordinate_transformation_mode": "asymmetric"}),
    Case(
        "resize",
        lambda x: mb.resize(
            x=x, shape=np.array([1, 0, 20], np.int32), resized_dims=np.uint32(2), sampling_mode="DEFAULT"
        ),
        lambda x: _default_linear(x, 20),
        (IMAGE,),
        opset="iOS17",
        atol=1e-5,
    ),
    Case(
        "resize to the nearest",
        lambda x: mb.resize(
            x=x,
            shape=np.array([18, 22], np.int32),
            resized_dims=np.uint32(2),
            interpolation_mode="NEAREST_NEIGHBOR",
            sampling_mode="DEFAULT",
        ),
        lambda x: x.repeat(2, 2).repeat(2, 3),
        (IMAGE,),
        opset="iOS17",
    ),
    Case(
        "resize_nearest_neighbor",
        lambda x: mb.resize_nearest_neighbor(x=x, target_size_height=4, target_size_width=22),
        lambda x: x[:, :, [0, 2, 4, 6]].repeat(2, 3),
        (IMAGE,),
    ),
    Case(
        "upsample_nearest_neighbor",
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
        lambda x: x.repeat(2, 2).repeat(3, 3),
        (IMAGE,),
    ),
    Case(
        "upsample_bilinear",
        lambda x: mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=3, align_corners=False),
        lambda x: onnx_runs("Resize", mode="linear", **HALF_PIXEL)(x, None, np.array([1, 1, 2, 3], np.float32)),
        (IMAGE,),
        atol=1e-5,
    ),
    Case(
        "upsample_bilinear aligned",
        lambda x: mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=2, align_corners=True),
        lambda x: onnx_runs("Resize", mode="linear", coordinate_transformation_mode="align_corners")(
            x, None, np.array([1, 1, 2, 2], np.float32)
        ),
        (IMAGE,),
        atol=1e-5,
    ),
    Case("crop", lambda x: mb.crop(x=x, crop_height=[1, 2], crop_width=[0, 3]), lambda x: x[:, :, 1:-2, :-3], (IMAGE,)),
    _resample("resample", "bilinear", "constant", "zeros", True),
    _resample("resample by edges", "bilinear", "border", "border", False),
    _resample("resample reflected", "bilinear", "reflection", "reflection", True),
    _resample("resample symmetric", "bilinear", "symmetric", "reflection", False),
    _resample("resample to the nearest", "nearest", "constant", "zeros", False),
    Case(
        "affine",
        lambda x: mb.affine(
            x=x,
            transform_matrix=TURN,
            output_height=7,
            output_width=5,
            sampling_mode="bilinear",
            padding_mode="constant",
            padding_value=np.float32(0),
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=True,
        ),
        _affine_oracle,
        (IMAGE,),
        atol=1e-5,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_operator_equals_oracle(case: Case) -> None:
    case.check()


@pytest.mark.parametrize(("x", "y"), [((3,), (5, 3, 2)), ((5, 2, 3), (3,)), ((3,), (3,))], ids=str)
def test_matmul_leaves_vectors_untransposed(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    first, second, yes = floats(*x), floats(*y, seed=1), torch.tensor(True)
    got = matmul(torch.from_numpy(first), torch.from_numpy(second), *((yes, None) if len(x) == 1 else (None, yes)))
    np.testing.assert_allclose(got.numpy(), np.matmul(first, second), rtol=1e-5, atol=1e-6)
