"""The saved package holds the program we meant: integers where it is quantized, and the original's interface."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.core import Model, TargetError, TensorSpec
from pipeline.recipe import CoremlConfig
from pipeline.target import Lowered
from targets.coreml import CoremlTarget
from targets.coreml.sdk import coremltools
from tests.networks.architectures import ARCHITECTURES
from tests.targets.coreml.programs import HandQuantized, model_of


def specification(lowered: Lowered) -> Any:
    return coremltools().models.MLModel(str(lowered.path), skip_model_load=True).get_spec()


def operators(lowered: Lowered) -> list[Any]:
    function = specification(lowered).mlProgram.functions["main"]
    return list(function.block_specializations[function.opset].operations)


def test_lower_stores_weights_as_int8_when_program_is_quantized(tmp_path: Path) -> None:
    lowered = CoremlTarget().lower(model_of(HandQuantized(), quantized=True), tmp_path, name="int8")

    weights = [op for op in operators(lowered) if op.type == "constexpr_blockwise_shift_scale"]
    int8 = coremltools().proto.MIL_pb2.INT8
    stored = [op.inputs["data"].arguments[0].value.type.tensorType.dataType for op in weights]
    assert stored == [int8, int8]
    assert Counter(op.type for op in operators(lowered))["quantize"] == 4
    assert lowered.variant == "int8"


def test_lower_keeps_fp32_when_program_is_the_original(tmp_path: Path) -> None:
    model = model_of(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2704, 3)))
    lowered = CoremlTarget().lower(model, tmp_path, name="fp32")

    types = {op.outputs[0].type.tensorType.dataType for op in operators(lowered) if op.type in ("conv", "linear")}
    assert types == {coremltools().proto.MIL_pb2.FLOAT32}
    assert lowered.variant == "fp32"


def test_lower_names_inputs_and_outputs_as_the_model_does(tmp_path: Path) -> None:
    lowered = CoremlTarget().lower(model_of(HandQuantized(), quantized=True), tmp_path, name="named")
    description = specification(lowered).description

    assert [feature.name for feature in description.input] == ["image"]
    assert [feature.name for feature in description.output] == ["output"]
    shapes = description.input[0].type.multiArrayType.enumeratedShapes.shapes
    assert [list(shape.shape) for shape in shapes] == [[1, 1, 28, 28], [32, 1, 28, 28]]


def test_lower_fixes_the_batch_when_one_size_is_asked_for(tmp_path: Path) -> None:
    target = CoremlTarget(CoremlConfig(batch_sizes=(4,)))
    lowered = target.lower(model_of(HandQuantized(), quantized=True), tmp_path, name="fixed")

    assert lowered.batch_size == 4
    assert list(specification(lowered).description.input[0].type.multiArrayType.shape) == [4, 1, 28, 28]


def test_lower_replaces_an_older_package_and_leaves_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "model.mlpackage").mkdir()
    (tmp_path / "model.mlpackage" / "old").touch()
    CoremlTarget().lower(model_of(nn.Linear(4, 2), TensorSpec(name="x", shape=(4,))), tmp_path, name="model")

    assert [entry.name for entry in tmp_path.iterdir()] == ["model.mlpackage"]
    assert sorted(entry.name for entry in (tmp_path / "model.mlpackage").iterdir()) == ["Data", "Manifest.json"]


def test_lower_writes_nothing_when_an_operator_has_no_form(tmp_path: Path) -> None:
    class Unsupported(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(TargetError, match="bessel_j0"):
        CoremlTarget().lower(model_of(Unsupported()), tmp_path, name="model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exponent", [-12, -30, 14])
def test_lower_computes_in_fp32_what_fp16_does_not_hold_and_says_so(exponent: int, tmp_path: Path) -> None:
    model = model_of(HandQuantized(), quantized=True)
    for node in model.module.graph.nodes:
        if "quantize_per_tensor" in str(node.target):
            node.args = (node.args[0], node.args[1] * 2.0**exponent, *node.args[2:])
    model.module.recompile()
    target = CoremlTarget()
    lowered = target.lower(model, tmp_path, name="model")
    images = torch.randint(-100, 100, (1, 1, 28, 28)) * 2.0 ** (exponent - 5)

    (outputs,) = target.load(lowered, threads=1).run((images.numpy(),))
    expected = model.module(images).detach().numpy()
    assert np.unique(expected).size > 1
    np.testing.assert_array_equal(outputs, expected)
    assert any(note.endswith("operators compute in FP32: FP16 does not hold their values") for note in lowered.notes)


def test_lower_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    CoremlTarget().lower(model_of(nn.Linear(4, 2), TensorSpec(name="x", shape=(4,))), tmp_path, name="model")
    assert capfd.readouterr() == ("", "")


def test_session_equals_torch_when_batch_is_cut_into_sizes(tmp_path: Path) -> None:
    model: Model = model_of(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(2704, 3)))
    target = CoremlTarget()
    session = target.load(target.lower(model, tmp_path, name="fp32"), threads=1)
    images = torch.randn(33, 1, 28, 28)

    (outputs,) = session.run((images.numpy(),))
    np.testing.assert_allclose(outputs, model.module(images).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_lower_takes_pooling_without_a_stride_and_quantized_slopes(tmp_path: Path) -> None:
    class Pooled(HandQuantized):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.full((1,), 0.25))
            self.register_buffer("scale", torch.tensor([2.0**-6]))
            self.register_buffer("zero", torch.tensor([0]))

        def forward(self, image: Tensor) -> Tensor:
            form = (self.scale, self.zero, 0, -127, 127, torch.int8)
            ops = torch.ops.quantized_decomposed
            slope = ops.dequantize_per_channel.default(ops.quantize_per_channel.default(self.slope, *form), *form)
            x = torch.prelu(self._activation(image, 2**-5, 5), slope)
            return nn.functional.max_pool2d(self._activation(x, 2**-5, 0), 3)

    model = model_of(Pooled(), quantized=True)
    target = CoremlTarget()
    session = target.load(target.lower(model, tmp_path, name="pooled"), threads=1)
    # On the input's grid, so that FP16 holds every value exactly and no product lies on a tie.
    images = torch.randint(-100, 100, (1, 1, 28, 28)) * 2.0**-5

    (outputs,) = session.run((images.numpy(),))
    np.testing.assert_array_equal(outputs, model.module(images).detach().numpy())


def test_lower_falls_back_to_batch_one_and_says_so_when_an_open_batch_does_not_convert(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["audio_cnn"]
    lowered = CoremlTarget().lower(architecture.model(), tmp_path, name="audio")

    assert lowered.batch_size == 1
    assert "no dynamic batch: coremltools cannot convert adaptive_avg_pool1d" in lowered.notes[0]
