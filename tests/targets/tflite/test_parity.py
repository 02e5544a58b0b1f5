from dataclasses import replace

import pytest
import torch
from torch import nn

from targets.tflite import TfliteTarget, flatbuffer, parity
from tests.targets.tflite.programs import QuantizedConv, model, through_int8

SHAPE = (3, 12, 12)

pytestmark = pytest.mark.slow


class Network(nn.Module):
    """Two convolutions around a sum, and a mean, all in int8."""

    def __init__(self):
        super().__init__()
        self.first, self.second = QuantizedConv(3, 8), QuantizedConv(8, 8, stride=2)

    def forward(self, x):
        y = self.first(x)
        y = through_int8(y + through_int8(y.sigmoid(), 1 / 256, -128), 0.05, 3)
        return through_int8(self.second(y).mean((2, 3)), 0.11, -128)


@pytest.fixture(scope="module")
def lowered(tmp_path_factory):
    return TfliteTarget().lower(model(Network(), SHAPE, quantized=True), tmp_path_factory.mktemp("net"), name="model")


@pytest.fixture
def sample():
    return (torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(5)),)


@pytest.mark.parametrize("reference_kernels", [True, False])
def test_layers_differ_by_at_most_one_step_when_each_reads_the_programs_integers(lowered, sample, reference_kernels):
    found = parity.layers(Network(), lowered.path, sample, reference_kernels=reference_kernels)
    assert {"CONV_2D", "ADD", "MEAN"} <= {layer.operator for layer in found}
    assert parity.first_divergence(found) is None
    assert all(layer.differing_ratio < 0.02 for layer in found if layer.operator == "CONV_2D")


@pytest.fixture
def broken(lowered, tmp_path):
    """The file with other weights in its second convolution."""
    model = flatbuffer.read_model(lowered.path.read_bytes())
    graph = model.subgraphs[0]
    second = [op for op in graph.operators if flatbuffer.operator_name(model, op) == "CONV_2D"][1]
    weights = model.buffers[graph.tensors[second.inputs[1]].buffer]
    weights.data = (weights.data.view("int8") // 2).view("uint8")
    broken = tmp_path / "broken.tflite"
    flatbuffer.write_model(flatbuffer.serialize(model), broken)
    return broken


def test_layers_names_only_the_operator_whose_weights_were_changed(broken, sample):
    found = parity.layers(Network(), broken, sample, reference_kernels=False)
    worst = parity.first_divergence(found)
    assert worst is not None
    assert worst.operator == "CONV_2D"
    assert [layer for layer in found if layer.max_steps > 1] == [worst]


def test_explain_blames_rounding_only_when_every_operator_is_right_by_itself(lowered, broken, sample):
    program = replace(model(Network(), SHAPE, quantized=True), examples=sample)
    assert "kernels round twice; none of" in TfliteTarget().explain(lowered, program)
    assert TfliteTarget().explain(replace(lowered, path=broken), program) is None
