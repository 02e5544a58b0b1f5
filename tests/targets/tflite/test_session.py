import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.core import TargetError
from pipeline.recipe import TfliteConfig
from pipeline.target import Skipped
from pipeline.tasks.prediction import predictor
from targets.tflite import TfliteTarget
from targets.tflite.session import LitertSession, Port, ReferenceKernelSession
from tests.targets.tflite.programs import QuantizedConv, QuantizedLinear, model, ops, through_int8

SAMPLE = (np.array([[1.3, -2.2]], np.float32),)
STEP = 0.1  # of QuantizedConv's output


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    return TfliteTarget().lower(
        model(QuantizedLinear(), (2,), quantized=True), tmp_path_factory.mktemp("linear"), name="model"
    )


@pytest.mark.parametrize("reference_kernels", [False, True])
def test_run_gives_the_values_computed_by_hand(linear, reference_kernels):
    session = LitertSession(linear.path, reference_kernels=reference_kernels)
    # x = (1.3, -2.2) becomes (1.5, -2.0) in steps of 0.5; W x + b = (1.5 + 4 + 1, 0.75 - 0.5 - 1)
    (output,) = session.run((np.array([[1.3, -2.2]], np.float32),))
    assert output.tolist() == [[6.5, -0.75]]


def test_run_clamps_to_the_integer_range_when_inputs_are_out_of_it(linear):
    # x becomes (63.5, -64): 63.5 + 128 + 1 is beyond the output's largest (127 - 4) * 0.25
    (output,) = TfliteTarget().load(linear, threads=1).run((np.array([[1e6, -1e6]], np.float32),))
    assert output.tolist() == [[30.75, 14.75]]


def test_session_says_what_runs_it(linear):
    session = TfliteTarget().load(linear, threads=1)
    assert session.metrics_source == "measured"
    assert session.runtime.endswith("XNNPACK")
    assert LitertSession(linear.path, reference_kernels=True).metrics_source == "reference"


@pytest.mark.slow
@pytest.mark.parametrize("reference_kernels", [False, True])
@pytest.mark.parametrize(("stride", "size"), [(1, 9), (2, 9), (2, 10)], ids=["stride 1", "odd input", "even input"])
def test_run_follows_the_program_within_one_step_on_a_convolution(tmp_path, stride, size, reference_kernels):
    program = QuantizedConv(stride=stride)
    lowered = TfliteTarget().lower(model(program, (3, size, size), quantized=True), tmp_path, name="model")
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2
    (expected,) = predictor(program)((x,))
    (output,) = LitertSession(lowered.path, reference_kernels=reference_kernels).run((x.numpy(),))
    assert output.shape == expected.shape
    assert np.abs(output - expected.numpy()).max() <= STEP * 1.0001
    assert expected.abs().max() > 10 * STEP


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8),
    st.floats(2**-13, 1.0, width=32),
    st.integers(-128, 127),
)
def test_port_encodes_exactly_as_torch_for_any_scale(values, scale, zero_point):
    port = Port({"index": 0, "dtype": np.int8, "quantization": (scale, zero_point)})
    x = torch.tensor(values)
    expected = ops.quantize_per_tensor.default(x, scale, zero_point, -128, 127, torch.int8)
    assert port.encode(x.numpy()).tolist() == expected.tolist()
    decoded = ops.dequantize_per_tensor.default(expected, scale, zero_point, -128, 127, torch.int8)
    assert port.decode(expected.numpy()).tolist() == decoded.tolist()


def test_reference_session_shares_samples_out_and_keeps_their_order(linear):
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32) * 4
    one_by_one = LitertSession(linear.path, reference_kernels=True)
    expected = np.concatenate([one_by_one.run((row[None],))[0] for row in x])
    (output,) = ReferenceKernelSession(linear.path).run((x,))
    assert np.array_equal(output, expected)


def test_cross_checks_are_the_reference_kernels_unless_they_are_declined(linear):
    (session,) = TfliteTarget().cross_checks(linear, SAMPLE)
    assert session.metrics_source == "reference"
    assert TfliteTarget(TfliteConfig(reference_kernels=False)).cross_checks(linear, SAMPLE) == ()


@pytest.mark.slow
def test_cross_checks_run_the_file_for_the_npu_when_the_cpu_has_another(tmp_path):
    target = TfliteTarget(TfliteConfig(npu=("ethos-u55-256",)))
    lowered = target.lower(model(QuantizedLinear(), (2,), quantized=True), tmp_path, name="model")
    other = target.lower(model(torch.nn.Linear(2, 2), (2,), quantized=False), tmp_path, name="model_npu")
    x = np.array([[1.3, -2.2]], np.float32)
    (session,) = target.cross_checks(lowered, SAMPLE)
    assert np.array_equal(session.run((x,)), LitertSession(other.path, reference_kernels=True).run((x,)))


def test_cross_checks_say_how_slow_the_reference_kernels_are_where_that_leaves_them_out(linear, monkeypatch):
    monkeypatch.setattr("targets.tflite.target.SLOW_S", 0.0)
    (skipped,) = TfliteTarget().cross_checks(linear, SAMPLE)
    assert isinstance(skipped, Skipped)
    assert skipped.runtime.endswith("reference kernels")
    assert re.match(r"they take \d+ ms a sample, more than 0; reference_kernels: true", skipped.reason)
    (session,) = TfliteTarget(TfliteConfig(reference_kernels=True)).cross_checks(linear, SAMPLE)
    assert isinstance(session, ReferenceKernelSession)


def test_the_pace_of_the_reference_kernels_is_that_of_a_real_sample(linear, monkeypatch):
    given = []
    monkeypatch.setattr(LitertSession, "run", lambda _, inputs: given.append(inputs))
    ReferenceKernelSession(linear.path).seconds_per_sample(SAMPLE)
    assert given == [SAMPLE]


def test_cross_checks_are_skipped_with_the_reason_where_the_plain_kernels_lack_an_operator(tmp_path):
    class Reflected(nn.Module):
        def forward(self, x):
            return through_int8(nn.functional.pad(through_int8(x, 0.5, 0), (0, 3), mode="reflect"), 0.5, 0)

    target = TfliteTarget()
    lowered = target.lower(model(Reflected(), (1, 8), quantized=True), tmp_path, name="model")
    (check,) = target.cross_checks(lowered, (np.zeros((1, 1, 8), np.float32),))
    assert isinstance(check, Skipped)
    assert check.reason == "they do not run it: LiteRT has no kernel for ABS version 5"


def test_a_run_that_litert_refuses_is_an_error_of_ours(tmp_path):
    session = LitertSession(
        TfliteTarget().lower(model(nn.Linear(2, 3), (2,), quantized=False), tmp_path, name="m").path
    )
    with pytest.raises(TargetError, match="LiteRT cannot run it: Cannot set tensor"):
        session.run((np.zeros((1, 7), np.float32),))
