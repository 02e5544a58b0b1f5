"""Quantize, dequantize and compressed constants: hand-computed values, and coremltools' own decompression as oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.core import TensorSpec
from targets.coreml import CoremlTarget
from targets.coreml.interpreter import Interpreter
from targets.coreml.interpreter.package import unpack_bits
from targets.coreml.sdk import quiet
from tests.targets.coreml.interpreter.mil import ct, floats, mb, run, save
from tests.targets.coreml.programs import HandQuantized, model_of


def test_quantize_rounds_to_even_and_saturates() -> None:
    def build(x: Any) -> Any:
        return mb.cast(x=mb.quantize(input=x, scale=0.5, zero_point=np.int8(3), output_dtype="int8"), dtype="int32")

    (got,) = run(build, np.array([0.0, 0.25, 0.75, -0.25, 1.0, 100.0, -100.0], np.float32))
    assert got.tolist() == [3, 3, 5, 3, 5, 127, -128]


def test_quantize_to_uint8_has_no_zero_point_when_none_is_given() -> None:
    def build(x: Any) -> Any:
        return mb.cast(x=mb.quantize(input=x, scale=0.25, output_dtype="uint8"), dtype="int32")

    (got,) = run(build, np.array([-1.0, 0.0, 0.3, 63.75, 70.0], np.float32))
    assert got.tolist() == [0, 0, 1, 255, 255]


def test_dequantize_inverts_quantize_along_an_axis() -> None:
    scale, zero = np.array([0.5, 0.25, 2.0], np.float32), np.array([1, -2, 0], np.int8)

    def build(x: Any) -> Any:
        q = mb.quantize(input=x, scale=scale, zero_point=zero, output_dtype="int8", axis=1)
        return mb.dequantize(input=q, scale=scale, zero_point=zero, axis=1)

    steps = np.random.default_rng(0).integers(-60, 60, (2, 3, 4))
    x = (steps * scale.reshape(1, 3, 1)).astype(np.float32)
    (got,) = run(build, x)
    np.testing.assert_array_equal(got, x)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_unpack_bits_equals_coremltools_when_packed_by_it(bits: int) -> None:
    from coremltools.optimize._utils import pack_elements_into_bits

    values = np.random.default_rng(bits).integers(0, 2**bits, 37).astype(np.uint8)
    np.testing.assert_array_equal(unpack_bits(pack_elements_into_bits(values, bits), bits, 37), values)


@pytest.mark.parametrize("values", [[-1, -1, -1], [7, -8, 3, 1], [1, 0, -2, 7, -5, 2, 3]])
def test_small_constants_of_four_bits_are_packed_with_their_sign(values: list[int]) -> None:
    """The converter stores a token of small integers as int4, and its offset as a single one."""
    from coremltools.converters.mil.mil import types

    four = types.nptype_from_builtin(types.int4)
    data, offset = np.array([values]).astype(four), np.array([[-1]]).astype(four)

    def build(x: Any) -> Any:
        scale = np.array([[0.5]], np.float32)
        return mb.add(x=mb.constexpr_blockwise_shift_scale(data=data, scale=scale, offset=offset), y=x)

    (got,) = run(build, np.zeros((1, len(values)), np.float32))
    assert got.tolist() == [[(value + 1) / 2 for value in values]]


def _weights_network() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 32))
    return network, torch.randn(2, 4, 8, 8)


def _palettized(**options: Any) -> Any:
    config = ct.optimize.coreml.OpPalettizerConfig(weight_threshold=0, mode="kmeans", num_kmeans_workers=1, **options)
    return lambda model: ct.optimize.coreml.palettize_weights(model, ct.optimize.coreml.OptimizationConfig(config))


def _quantized(**options: Any) -> Any:
    config = ct.optimize.coreml.OpLinearQuantizerConfig(weight_threshold=0, **options)
    return lambda model: ct.optimize.coreml.linear_quantize_weights(
        model, ct.optimize.coreml.OptimizationConfig(config)
    )


def _pruned(model: Any) -> Any:
    config = ct.optimize.coreml.OpMagnitudePrunerConfig(target_sparsity=0.6, weight_threshold=0)
    return ct.optimize.coreml.prune_weights(model, ct.optimize.coreml.OptimizationConfig(config))


def _jointly(first: Any, compress: Any, config: Any) -> Any:
    return lambda model: compress(first(model), ct.optimize.coreml.OptimizationConfig(config), joint_compression=True)


COMPRESSIONS = {
    "iOS16 affine": ("iOS16", _quantized(mode="linear", dtype="int8")),
    "iOS16 look-up table of 4 bits": ("iOS16", _palettized(nbits=4)),
    "iOS16 look-up table of 6 bits": ("iOS16", _palettized(nbits=6)),
    "iOS16 sparse": ("iOS16", _pruned),
    "iOS18 look-up tables per group of channels": (
        "iOS18",
        _palettized(nbits=4, granularity="per_grouped_channel", group_size=4),
    ),
    "iOS18 look-up table of vectors": ("iOS18", _palettized(nbits=4, cluster_dim=2)),
    "iOS18 int4 per block": ("iOS18", _quantized(dtype="int4", granularity="per_block", block_size=2)),
    "iOS18 uint4 with offset": ("iOS18", _quantized(mode="linear", dtype="uint4", granularity="per_channel")),
    "iOS18 sparse": ("iOS18", _pruned),
    "iOS18 sparse and quantized": (
        "iOS18",
        _jointly(
            _pruned,
            lambda *args, **kwargs: ct.optimize.coreml.linear_quantize_weights(*args, **kwargs),
            ct.optimize.coreml.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0),
        ),
    ),
    "iOS18 sparse and palettized": (
        "iOS18",
        _jointly(
            _pruned,
            lambda *args, **kwargs: ct.optimize.coreml.palettize_weights(*args, **kwargs),
            ct.optimize.coreml.OpPalettizerConfig(nbits=4, mode="kmeans", weight_threshold=0, num_kmeans_workers=1),
        ),
    ),
}


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compressed_weights_give_the_outputs_that_coremltools_own_decompression_gives(
    name: str, tmp_path: Path
) -> None:
    """`decompress_weights` writes the same weights out in full, by Apple's code."""
    opset, compress = COMPRESSIONS[name]
    network, x = _weights_network()
    with quiet():
        model = ct.convert(
            torch.jit.trace(network, x),
            inputs=[ct.TensorType(name="x", shape=x.shape)],
            outputs=[ct.TensorType(name="y")],
            minimum_deployment_target=ct.target[opset],
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
        compressed = compress(model)
        compressed.save(str(tmp_path / "compressed.mlpackage"))
        ct.optimize.coreml.decompress_weights(compressed).save(str(tmp_path / "full.mlpackage"))
    packed, full = Interpreter(tmp_path / "compressed.mlpackage"), Interpreter(tmp_path / "full.mlpackage")

    assert any(name.startswith("constexpr_") for name in packed.program.count_operators())
    assert not any(name.startswith("constexpr_") for name in full.program.count_operators())
    inputs = {"x": x.numpy()}
    np.testing.assert_allclose(packed.run(inputs)["y"], full.run(inputs)["y"], rtol=1e-4, atol=1e-5)


def test_float16_rounds_after_every_operator_as_numpy_does(tmp_path: Path) -> None:
    """FP16 arithmetic in NumPy computes in FP32 and rounds each result, which is what the mode promises."""

    def build(x: Any) -> Any:
        return mb.mul(x=mb.add(x=mb.cast(x=x, dtype="fp16"), y=np.float16(0.1)), y=np.float16(3.3))

    x = floats(5, 7)
    package = save(build, x, path=tmp_path / "half.mlpackage")
    (got,) = Interpreter(package, precision="float16").run({"a": x}).values()
    expected = (x.astype(np.float16) + np.float16(0.1)) * np.float16(3.3)
    np.testing.assert_array_equal(got, expected.astype(np.float32))

    (unrounded,) = Interpreter(package).run({"a": x}).values()
    constants = np.float32(np.float16(0.1)), np.float32(np.float16(3.3))
    np.testing.assert_allclose(unrounded, (x + constants[0]) * constants[1], rtol=1e-6)


def test_int8_program_equals_the_quantized_graph_exactly_when_all_scales_are_powers_of_two(tmp_path: Path) -> None:
    """Such scales exist in FP16 and FP32 alike, and sums of their multiples are exact in any order."""
    model = model_of(HandQuantized(), quantized=True)
    lowered = CoremlTarget().lower(model, tmp_path, name="int8")
    images = torch.randn(32, 1, 28, 28, generator=torch.Generator().manual_seed(1)).half().float()

    got = Interpreter(lowered.path).run({"image": images.numpy()})["output"]
    np.testing.assert_array_equal(got, model.module(images).detach().numpy())


def test_fp32_program_equals_torch(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)).eval()
    lowered = CoremlTarget().lower(model_of(network, TensorSpec(name="x", shape=(6,))), tmp_path, name="fp32")
    x = torch.randn(32, 6)
    got = Interpreter(lowered.path).run({"x": x.numpy()})["output"]
    np.testing.assert_allclose(got, network(x).detach().numpy(), rtol=1e-5, atol=1e-6)
