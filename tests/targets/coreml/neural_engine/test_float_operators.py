"""What the placement says of operators in float, against the saved specification."""

from collections import Counter
from pathlib import Path

import pytest

import targets
from pipeline.target import Lowered, Placement
from targets.coreml.neural_engine.rules import IN_FLOAT
from targets.coreml.sdk import coremltools
from tests.networks.architectures import ARCHITECTURES
from tests.targets.float_layers import LAYERS, calibrated, model_of

MOVES = {
    "cast",
    "concat",
    "expand_dims",
    "gather",
    "pad",
    "reshape",
    "slice_by_index",
    "split",
    "squeeze",
    "tile",
    "transpose",
}
EXPECTED = {
    "hardswish": {"thresholded_relu": 1, "sigmoid_hard": 1, "mul": 1},
    "gelu": {"gelu": 1},
    "attention": {"mul": 1, "matmul": 2, "softmax": 1},
    "layer_norm": {"layer_norm": 1},
    "prelu": {"prelu": 1},
    "elu": {"elu": 1},
    "embedding": {"add": 1},
    "convolution": {},
}


def found_in_float(lowered: Lowered) -> Counter[str]:
    """Operators with float results, but for products of dequantized values by int8 weights, in a saved package."""
    specification = coremltools().models.MLModel(str(lowered.path), skip_model_load=True).get_spec()
    function = specification.mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    makers = {value.name: operation.type for operation in operations for value in operation.outputs}
    found: Counter[str] = Counter()
    for operation in operations:
        if operation.type in {"const", "quantize", "dequantize", *MOVES} or operation.type.startswith("constexpr"):
            continue
        read = {key: makers.get(argument.arguments[0].name) for key, argument in operation.inputs.items()}
        weighted = read.get("weight") or read.get("y")
        if read.get("x") == "dequantize" and weighted == "constexpr_blockwise_shift_scale":
            assert operation.type in ("conv", "linear", "matmul", "add")
            if operation.type != "add":
                continue
        dtypes = {value.type.tensorType.dataType for value in operation.outputs}
        found[operation.type] += bool(dtypes & {10, 11})  # FLOAT16 and FLOAT32 in MIL.proto
    return +found


def listed_in_float(placement: Placement) -> Counter[str]:
    return Counter({item.op: item.count for item in placement.fallback if item.reason == IN_FLOAT})


@pytest.mark.parametrize("name", LAYERS)
def test_placement_lists_the_operators_that_the_package_computes_in_float(name: str, tmp_path: Path) -> None:
    target = targets.get("coreml")
    lowered = target.lower(model_of(name), tmp_path, name="model")
    placement = target.placement(lowered)
    assert placement is not None
    assert listed_in_float(placement) == found_in_float(lowered)
    assert listed_in_float(placement) == {"relu": 1, **EXPECTED[name]}
    assert placement.accelerated == placement.operators  # the Neural Engine computes these in FP16


def test_placement_lists_nothing_in_float_when_the_model_is_not_quantized(tmp_path: Path) -> None:
    target = targets.get("coreml")
    placement = target.placement(target.lower(ARCHITECTURES["resnet"].model(), tmp_path, name="model", variant="fp16"))
    assert placement is not None
    assert listed_in_float(placement) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3", "vit", "convnext"])
def test_placement_lists_the_float_operators_of_a_calibrated_network(name: str, tmp_path: Path) -> None:
    target = targets.get("coreml")
    lowered = target.lower(calibrated(name), tmp_path, name="model")
    placement = target.placement(lowered)
    assert placement is not None
    assert listed_in_float(placement) == found_in_float(lowered)
