"""Elementwise operators and activations against NumPy, SciPy's special functions being written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.targets.coreml.interpreter.mil import Array, Case, floats, integers, mb, onnx_runs, run

X = floats(2, 3, 4)
COLUMN = floats(3, 1, seed=1)
POSITIVE = floats(2, 3, 4, low=0.1, high=5.0)
SHARE = floats(2, 3, 4, low=-0.99, high=0.99)


def _unary(name: str, oracle: Any, values: Array = X, **kwargs: Any) -> Case:
    return Case(name, lambda x: getattr(mb, name.split(" ")[0])(x=x, **kwargs), oracle, (values,))


def _binary(name: str, oracle: Any, x: Array = X, y: Array = COLUMN) -> Case:
    return Case(name, lambda x, y: getattr(mb, name.split(" ")[0])(x=x, y=y), oracle, (x, y))


_erf = np.vectorize(math.erf)
WHOLE, DIVISOR = integers(2, 3, 4), integers(3, 1, low=1, seed=1)
BOOLEANS = (integers(2, 3, low=0, high=2), integers(2, 3, low=0, high=2, seed=1))
CHANNELS = floats(2, 3, 4, 5)


def _logical(name: str, oracle: Any) -> Case:
    def build(x: Any, y: Any) -> Any:
        return getattr(mb, name)(x=mb.cast(x=x, dtype="bool"), y=mb.cast(x=y, dtype="bool"))

    return Case(name, build, oracle, BOOLEANS)


CASES = [
    _unary("abs", np.abs),
    _unary("abs of integers", np.abs, WHOLE),
    _unary("acos", np.arccos, SHARE),
    _unary("asin", np.arcsin, SHARE),
    _unary("atan", np.arctan),
    _unary("atanh", np.arctanh, SHARE),
    _unary("ceil", np.ceil),
    _unary("clip", lambda x: np.clip(x, -0.5, 0.25), alpha=np.float32(-0.5), beta=np.float32(0.25)),
    _unary("cos", np.cos),
    _unary("cosh", np.cosh),
    _unary("erf", _erf),
    _unary("exp", np.exp),
    _unary("exp2", np.exp2),
    _unary("floor", np.floor),
    _unary("inverse", lambda x: 1 / (x + 1e-4), POSITIVE),
    _unary("log", np.log, POSITIVE),
    _unary("log with epsilon", lambda x: np.log(x + 2), POSITIVE, epsilon=np.float32(2)),
    _unary("round to even", np.round, np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997], np.float32)),
    _unary("rsqrt", lambda x: 1 / np.sqrt(x), POSITIVE),
    _unary("rsqrt with epsilon", lambda x: 1 / np.sqrt(x + 1), POSITIVE, epsilon=np.float32(1)),
    _unary("sign", np.sign, np.array([-3.0, -0.0, 0.0, 2.0], np.float32)),
    _unary("sin", np.sin),
    _unary("sinh", np.sinh),
    _unary("sqrt", np.sqrt, POSITIVE),
    _unary("square", np.square),
    _unary("tan", np.tan, SHARE),
    _unary("tanh", np.tanh),
    _unary("threshold", lambda x: np.maximum(x, 0.5), alpha=np.float32(0.5)),
    _unary("cast to int32", np.trunc, np.array([-1.9, -0.5, 0.5, 1.9], np.float32), dtype="int32"),
    _unary("cast to fp32", np.float32, WHOLE, dtype="fp32"),
    _unary("identity", lambda x: x),
    Case(
        "logical_not",
        lambda x: mb.logical_not(x=mb.cast(x=x, dtype="bool")),
        lambda x: np.logical_not(x).astype(np.int32),
        BOOLEANS[:1],
    ),
    _binary("add", np.add),
    _binary("add of integers", np.add, WHOLE, DIVISOR),
    _binary("sub", np.subtract),
    _binary("mul", np.multiply),
    _binary("real_div", np.divide),
    _binary("floor_div", np.floor_divide),
    _binary("floor_div of integers", np.floor_divide, WHOLE, DIVISOR),
    _binary("mod", np.mod),
    _binary("mod of integers", np.mod, WHOLE, DIVISOR),
    _binary("pow", np.power, POSITIVE),
    _binary("maximum", np.maximum),
    _binary("minimum", np.minimum),
    _binary("equal", np.equal, WHOLE, DIVISOR),
    _binary("not_equal", np.not_equal, WHOLE, DIVISOR),
    _binary("greater", np.greater, WHOLE, DIVISOR),
    _binary("greater_equal", np.greater_equal, WHOLE, DIVISOR),
    _binary("less", np.less, WHOLE, DIVISOR),
    _binary("less_equal", np.less_equal, WHOLE, DIVISOR),
    _logical("logical_and", np.logical_and),
    _logical("logical_or", np.logical_or),
    _logical("logical_xor", np.logical_xor),
    Case(
        "select",
        lambda c, a, b: mb.select(cond=mb.cast(x=c, dtype="bool"), a=a, b=b),
        lambda c, a, b: np.where(c, a, b),
        (BOOLEANS[0], floats(2, 3), floats(2, 3, seed=1)),
    ),
    _unary("relu", lambda x: np.maximum(x, 0)),
    _unary("relu6", lambda x: np.clip(x, 0, 6), 6 * X),
    _unary(
        "clamped_relu",
        lambda x: np.minimum(np.where(x >= 0, x, 0.2 * x), 0.5),
        alpha=np.float32(0.2),
        beta=np.float32(0.5),
    ),
    _unary("elu", lambda x: np.where(x > 0, x, 0.7 * (np.exp(x) - 1)), alpha=np.float32(0.7)),
    _unary("gelu", lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))), mode="EXACT"),
    _unary(
        "gelu by tanh",
        lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        mode="TANH_APPROXIMATION",
    ),
    _unary("gelu by sigmoid", lambda x: x / (1 + np.exp(-1.702 * x)), mode="SIGMOID_APPROXIMATION"),
    _unary("leaky_relu", lambda x: np.where(x >= 0, x, 0.1 * x), alpha=np.float32(0.1)),
    _unary("linear_activation", lambda x: 2 * x + 3, alpha=np.float32(2), beta=np.float32(3)),
    _unary(
        "prelu",
        lambda x: np.where(x > 0, x, np.array([0.1, 0.2, -0.3], np.float32).reshape(1, 3, 1, 1) * x),
        CHANNELS,
        alpha=np.array([0.1, 0.2, -0.3], np.float32),
    ),
    _unary("scaled_tanh", lambda x: 1.7 * np.tanh(0.6 * x), alpha=np.float32(1.7), beta=np.float32(0.6)),
    _unary("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    _unary("sigmoid_hard", lambda x: np.clip(0.3 * x + 0.4, 0, 1), alpha=np.float32(0.3), beta=np.float32(0.4)),
    _unary("silu", lambda x: x / (1 + np.exp(-x))),
    _unary("softplus", lambda x: np.log1p(np.exp(x))),
    _unary("softplus of large values", lambda x: x.astype(np.float64), np.array([100.0, 1000.0], np.float32)),
    _unary(
        "softplus_parametric",
        lambda x: (
            np.array([1, 2, 3]).reshape(1, 3, 1, 1) * np.log1p(np.exp(np.array([0.5, 1, -1]).reshape(1, 3, 1, 1) * x))
        ),
        CHANNELS,
        alpha=np.array([1, 2, 3], np.float32),
        beta=np.array([0.5, 1, -1], np.float32),
    ),
    _unary("softmax", onnx_runs("Softmax", axis=1), axis=1),
    _unary("softmax of the last axis", onnx_runs("Softmax", axis=-1)),
    _unary("softsign", lambda x: x / (1 + np.abs(x))),
    _unary("thresholded_relu", lambda x: np.where(x >= 0.3, x, 0), alpha=np.float32(0.3)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_operator_equals_oracle(case: Case) -> None:
    case.check()


@pytest.mark.parametrize(("dtype", "expected"), [("int8", [-128, -1, 0, 127]), ("uint8", [0, 1, 200, 255])])
def test_cast_keeps_values_when_they_fit_an_8_bit_type(dtype: str, expected: list[int]) -> None:
    def build(x: Any) -> Any:
        return mb.cast(x=mb.cast(x=x, dtype=dtype), dtype="int32")

    (got,) = run(build, np.array(expected, np.float32))
    assert got.tolist() == expected


@pytest.mark.parametrize("operator", ["relu", "add", "softmax"])
def test_scalar_and_empty_free_shapes_survive(operator: str) -> None:
    x = np.array([2.0], np.float32)
    build = (lambda x: mb.add(x=x, y=np.float32(1))) if operator == "add" else (lambda x: getattr(mb, operator)(x=x))
    (got,) = run(build, x)
    assert got.shape == (1,)
