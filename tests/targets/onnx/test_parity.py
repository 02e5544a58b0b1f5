"""The walk over both graphs finds the tensor where an error was put in."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  # registers the quantized_decomposed operators

import targets
from pipeline.core import Model, TensorSpec
from pipeline.target import Lowered
from targets.onnx.parity import first_divergence, parity

Q = torch.ops.quantized_decomposed


def fake_quantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    rule = (scale, zero_point, -128, 127, torch.int8)
    return Q.dequantize_per_tensor(Q.quantize_per_tensor(x, *rule), *rule)


class Chain(nn.Module):
    """Four quantized tensors one after another: the input, its double, a rectified shift, the mean with the input."""

    def forward(self, x: Tensor) -> Tensor:
        x = fake_quantize(x, 0.03, 0)
        y = fake_quantize(x + x, 0.06, 0)
        y = fake_quantize(torch.relu(y - x), 0.03, -128)
        return fake_quantize(y + x, 0.05, 3)


@pytest.fixture(scope="module")
def model() -> Model:
    inputs = (TensorSpec(name="x", shape=(3, 8)),)
    return Model(module=Chain(), reference=Chain(), inputs=inputs, quantized=True)


@pytest.fixture(scope="module")
def lowered(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    return targets.get("onnx").lower(model, tmp_path_factory.mktemp("parity"), name="model")


@pytest.fixture(scope="module")
def samples() -> tuple[Tensor, ...]:
    return (torch.randn(16, 3, 8, generator=torch.Generator().manual_seed(0)),)


def test_parity_is_within_one_step_when_the_file_is_the_program(
    model: Model, lowered: Lowered, samples: tuple[Tensor, ...]
) -> None:
    tensors = parity(model, lowered, samples)
    assert len(tensors) == 4
    assert tensors[0].sqnr_db == float("inf")
    assert first_divergence(tensors) is None


def test_parity_names_the_first_tensor_when_the_file_was_changed(
    model: Model, lowered: Lowered, samples: tuple[Tensor, ...]
) -> None:
    onnx_model = onnx.load(lowered.path)
    quantizers = [node for node in onnx_model.graph.node if node.op_type == "QuantizeLinear"]
    wrong = onnx.numpy_helper.from_array(np.float32(0.04), "wrong_scale")
    onnx_model.graph.initializer.append(wrong)
    quantizers[1].input[1] = wrong.name
    broken = replace(lowered, path=lowered.path.with_name("broken.onnx"))
    onnx.save(onnx_model, broken.path)
    tensors = parity(model, broken, samples)
    diverging = first_divergence(tensors)
    assert diverging is not None
    assert diverging.name == quantizers[1].output[0]
    assert tensors[0].most_steps == 0
    assert diverging.differing_ratio > 0.5
