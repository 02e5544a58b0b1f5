import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from calibration_data.fashion_mnist.harder.train import load_trained
from calibration_data.fashion_mnist.train import IMAGE, committed_samples
from pipeline.core import Model, TensorSpec
from pipeline.data.open import from_dataset
from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.quantize import quantize
from targets.tflite import TfliteTarget, flatbuffer, parity, rounding
from tests.targets.tflite.programs import QuantizedLinear, model

NONE, RELU, RELU6 = 0, 1, 3  # of the schema's ActivationFunctionType


def as_in_c(total, factor):
    """TFLite's requantization of one sum, step by step in Python's integers, with C's division towards zero."""
    significand, exponent = math.frexp(factor)
    multiplier = math.floor(significand * 2**31 + 0.5)
    if multiplier == 2**31:
        multiplier, exponent = 2**30, exponent + 1
    product = (total << max(exponent, 0)) * multiplier
    nudged = product + (2**30 if product >= 0 else 1 - 2**30)
    high = nudged // 2**31 if nudged >= 0 else -(-nudged // 2**31)
    shift = max(-exponent, 0)
    remainder, threshold = high & (2**shift - 1), ((2**shift - 1) >> 1) + (high < 0)
    return (high >> shift) + (remainder > threshold)


@given(st.lists(st.integers(-(2**24), 2**24), min_size=1), st.floats(2.0**-20, 7.9))
def test_twice_computes_what_the_kernels_do_when_sums_are_any(sums, factor):
    found = rounding.twice(np.array(sums), np.array(factor))
    assert found.tolist() == [as_in_c(total, factor) for total in sums]


def test_twice_moves_one_value_in_two_to_the_shift_plus_one():
    sums = np.random.default_rng(0).integers(-(2**20), 2**20, 1_000_000)
    factor = np.array(math.sqrt(0.5) / 2**6)
    assert rounding.fixed_point(factor)[1] == 6
    apart = rounding.twice(sums, factor) - rounding.once(sums, factor)
    assert np.abs(apart).max() == 1
    assert np.mean(apart != 0) == pytest.approx(2**-7, rel=0.05)


def test_note_gives_the_share_computed_by_hand_when_factors_differ_by_channel(tmp_path):
    """0.5 * (0.5, 0.25) / 0.25 is 1, which needs no shift, and 1/2, whose shift is 0: neither is rounded twice."""
    path = TfliteTarget().lower(model(QuantizedLinear(), (2,), quantized=True), tmp_path, name="model").path
    assert rounding.note(path) == ()
    tflite_model = flatbuffer.read_model(path.read_bytes())
    (operator,) = tflite_model.subgraphs[0].operators
    weight = tflite_model.subgraphs[0].tensors[operator.inputs[1]]
    weight.quantization.scale = [1 / 16, 1 / 64]  # now 1/8 and 1/32: shifts of 2 and 4
    flatbuffer.write_model(flatbuffer.serialize(tflite_model), path)
    (found,) = rounding.note(path)
    assert f"{(2**-3 + 2**-5) / 2:.2%} of them" in found


def clamped(model, operator, steps):
    """Steps as the operator's output integers."""
    output = model.subgraphs[0].tensors[operator.outputs[0]].quantization
    zero, fused = int(output.zeroPoint[0]), operator.builtinOptions.fusedActivationFunction
    low = -128 if fused == NONE else zero
    high = 127 if fused != RELU6 else min(127, zero + round(6 / float(output.scale[0])))
    return np.clip(steps + zero, low, high)


@pytest.mark.parametrize("high", [4.0, 5.0, 6.0, 7.0])
def test_plain_kernels_give_silu_as_the_program_does_when_its_scale_is_settled(tmp_path, high):
    """All 256 values: with scales as they come, one or two of them are off by a step in each of the four cases."""
    ramp = torch.linspace(-3.0, high, 256)[None]
    spec = TensorSpec(name="x", shape=(256,))
    model = Model(module=nn.SiLU(), reference=nn.SiLU(), inputs=(spec,), outputs=("y",))
    samples = from_dataset(TensorDataset(ramp.repeat(8, 1)), (spec,))
    config = QuantizeConfig(observers=("minmax",))
    program = quantize(model, config, samples, budget=Budget())
    path = TfliteTarget().lower(program, tmp_path, name="model").path
    integers = parity.integers(program.module, path, (ramp,), reference_kernels=True)
    expected, found = list(integers.values())[-1]
    assert len(np.unique(expected)) > 128
    assert np.array_equal(expected, found)


@pytest.mark.slow
def test_plain_kernels_give_sums_rounded_twice_when_the_program_rounds_them_once(tmp_path):
    """Every value of a trained MobileNetV3's layers, each fed with the program's own integers."""
    module, images = load_trained("mobilenet_v3"), committed_samples("train").take(128)
    config = QuantizeConfig(observers=("minmax",), bias_correction=False, equalisation=False, mixed_precision=False)
    model = Model(module=module, reference=module, inputs=(IMAGE,))
    program = quantize(model, config, images, budget=Budget(metric="agreement"))
    path = TfliteTarget().lower(program, tmp_path, name="model").path
    (image,) = next(committed_samples("test").batches(1)).inputs
    plain = parity.integers(program.module, path, (image,), reference_kernels=True)
    xnnpack = parity.integers(program.module, path, (image,), reference_kernels=False)
    file = flatbuffer.read_model(path.read_bytes())
    layers = values = moved = 0
    for operator in file.subgraphs[0].operators:
        source, result = int(operator.inputs[0]), int(operator.outputs[0])
        if not rounding.sums_integers(file, operator) or source not in plain or result not in plain:
            continue  # what pads or pairs pixels before a convolution is no tensor of the program
        sums = rounding.exact_sums(file, operator, plain[source][0])
        factors = rounding.factors(file, operator)
        expected, got = plain[result]
        once, twice = (
            clamped(file, operator, requantize(sums, factors)).reshape(got.shape)
            for requantize in (rounding.once, rounding.twice)
        )
        assert np.array_equal(twice, got)
        assert np.array_equal(once, expected)
        assert np.array_equal(once, xnnpack[result][1])
        layers, values, moved = layers + 1, values + got.size, moved + np.sum(once != twice)
    assert layers >= 25
    assert moved / values == pytest.approx(rounding.moved(file), rel=0.3)
