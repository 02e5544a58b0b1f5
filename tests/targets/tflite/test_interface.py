from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.core import Preprocessing, TargetError
from pipeline.recipe import TfliteConfig
from targets.tflite import TfliteTarget, flatbuffer, lowering
from targets.tflite.interface import read_metadata
from tests.targets.tflite.programs import QuantizedConv, model

pytestmark = pytest.mark.slow

SHAPE = (3, 9, 9)


@pytest.fixture(scope="module")
def lowered(tmp_path_factory):
    """The same program with every interface."""
    configs = {
        "int8": TfliteConfig(),
        "uint8": TfliteConfig(io="uint8"),
        "float32": TfliteConfig(io="float32"),
        "nhwc": TfliteConfig(input_layout="nhwc"),
        "nhwc uint8": TfliteConfig(input_layout="nhwc", io="uint8"),
    }
    program = model(QuantizedConv(), SHAPE, quantized=True)
    folder = tmp_path_factory.mktemp("interfaces")
    plain = TfliteTarget().lower(program, folder, name="plain")
    content, _, _ = lowering.translate(program, "cpu")
    made = {name: replace(plain, path=folder / f"{name}.tflite") for name in configs}
    for name, config in configs.items():
        flatbuffer.write_model(lowering.finish(content, program, config, "int8"), made[name].path)
    return made


def model_of(item):
    return flatbuffer.read_model(item.path.read_bytes())


def ports(item):
    graph = model_of(item).subgraphs[0]
    return [flatbuffer.dtype_name(graph.tensors[index]) for index in (*graph.inputs, *graph.outputs)]


def operators(item):
    model = model_of(item)
    return [flatbuffer.operator_name(model, operator) for operator in model.subgraphs[0].operators]


def test_lower_gives_inputs_and_outputs_the_type_that_is_asked_for(lowered):
    assert ports(lowered["int8"]) == ["INT8", "INT8"]
    assert ports(lowered["uint8"]) == ["UINT8", "UINT8"]
    assert ports(lowered["float32"]) == ["FLOAT32", "FLOAT32"]
    assert operators(lowered["float32"])[0] == "QUANTIZE"
    assert operators(lowered["float32"])[-1] == "DEQUANTIZE"


def test_uint8_stands_for_the_same_reals_as_int8(lowered):
    tensors = [model_of(lowered[name]).subgraphs[0] for name in ("int8", "uint8")]
    signed, unsigned = (graph.tensors[graph.inputs[0]].quantization for graph in tensors)
    assert list(signed.scale) == list(unsigned.scale)
    assert unsigned.zeroPoint[0] == signed.zeroPoint[0] + 128 == 3 + 128


@pytest.mark.parametrize("name", ["uint8", "float32", "nhwc", "nhwc uint8"])
def test_run_gives_the_same_values_whatever_the_interface(lowered, name):
    x = (torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(2)) * 2).numpy()
    target = TfliteTarget()
    (expected,) = target.load(lowered["int8"], threads=1).run((x,))
    (output,) = target.load(lowered[name], threads=1).run((x,))
    assert np.array_equal(output, expected)
    assert np.ptp(expected) > 1


def test_nhwc_needs_no_transpose_at_the_input(lowered):
    graph = model_of(lowered["nhwc"]).subgraphs[0]
    assert list(graph.tensors[graph.inputs[0]].shape) == [1, 9, 9, 3]
    assert operators(lowered["int8"]).count("TRANSPOSE") == operators(lowered["nhwc"]).count("TRANSPOSE") + 1


def test_nhwc_restores_the_layout_for_an_operator_that_wants_it(tmp_path):
    class Planes(nn.Module):
        def forward(self, x):
            return x.flatten(1).cumsum(1)

    lowered = TfliteTarget(TfliteConfig(input_layout="nhwc")).lower(
        model(Planes(), (2, 3, 4), quantized=False), tmp_path, name="model"
    )
    x = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    (output,) = TfliteTarget().load(lowered, threads=1).run((x,))
    assert output[0].tolist() == np.arange(24).cumsum().tolist()


def test_open_reads_the_original_interface_from_the_file(lowered):
    opened = TfliteTarget().open(lowered["nhwc uint8"].path)
    assert opened.inputs == lowered["nhwc uint8"].inputs
    assert (opened.outputs, opened.variant, opened.batch_size) == (("scores",), "int8", 1)
    assert TfliteTarget().open(lowered["float32"].path).variant == "int8"


def test_metadata_holds_labels_normalisation_and_the_recipes_hash(tmp_path):
    described = replace(
        model(nn.Linear(2, 2), (2,), quantized=False),
        classes=("cat", "dog"),
        preprocessing=Preprocessing(scale=1 / 255, mean=(0.5,), std=(0.25,)),
        recipe_sha256="ab" * 32,
    )
    facts = read_metadata(TfliteTarget().lower(described, tmp_path, name="model").path)
    assert facts["classes"] == ["cat", "dog"]
    assert (facts["preprocessing"]["mean"], facts["preprocessing"]["std"]) == ([0.5], [0.25])
    assert facts["recipe_sha256"] == "ab" * 32
    assert facts["inputs"] == [{"name": "input_0", "shape": [2], "dtype": "float32", "layout": None}]


def test_run_refuses_integers_for_a_float_input(lowered):
    with pytest.raises(TargetError, match="takes real numbers, not int64"):
        TfliteTarget().load(lowered["int8"], threads=1).run((np.zeros((1, *SHAPE), np.int64),))
