"""The file against the quantized program on real images, for four trained networks: parity, and where the work runs."""

import pytest
import torch

import targets
from calibration_data.fashion_mnist import train as demo
from calibration_data.fashion_mnist.harder import train as harder
from pipeline.core import Model
from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.quantize import quantize
from pipeline.target import Lowered
from pipeline.tasks.comparison import Comparison
from pipeline.tasks.prediction import predictor, session_predictor
from targets.onnx.parity import parity
from targets.onnx.placement import kernels

IMAGES = 2000
LEFT_IN_FLOAT = {
    "resnet": set(),
    "mobilenet_v2": set(),
    "mobilenet_v3": {"DequantizeLinear", "HardSigmoid", "Mul", "QuantizeLinear"},  # hardswish where no product is exact
    "efficientnet": set(),
}


def quantized(name: str) -> Model:
    """Calibration on 128 images, with the first range that serves."""
    module = (demo.load_trained() if name == "resnet" else harder.load_trained(name)).eval()
    model = Model(module=module, reference=module, inputs=(demo.IMAGE,), outputs=("logits",))
    config = QuantizeConfig(observers=("minmax",), equalisation=False, mixed_precision=False)
    return quantize(model, config, demo.committed_samples("train").take(128), budget=Budget(metric="agreement"))


def compared(model: Model, lowered: Lowered) -> Comparison:
    program = predictor(model.module)
    file = session_predictor(targets.get("onnx").load(lowered, threads=1))
    found = Comparison(class_axis=1)
    with torch.no_grad():
        for batch in demo.committed_samples("test").take(IMAGES).batches(256):
            found.update(file(batch.inputs), program(batch.inputs))
    return found


@pytest.fixture(scope="module", params=LEFT_IN_FLOAT)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Model, Lowered]:
    model = quantized(request.param)
    lowered = targets.get("onnx").lower(model, tmp_path_factory.mktemp(request.param), name="model")
    return request.param, model, lowered


@pytest.mark.slow
def test_convolutions_and_products_run_on_integer_kernels_when_the_network_was_trained(
    case: tuple[str, Model, Lowered],
) -> None:
    name, _, lowered = case
    executed = kernels(lowered)
    assert {kernel.op for kernel in executed if not kernel.on_integers} <= LEFT_IN_FLOAT[name]
    assert not [kernel.op for kernel in executed if kernel.op in ("Conv", "Gemm", "MatMul")]
    in_float = [kernel.op for kernel in executed if kernel.op == "HardSigmoid"]
    assert len(in_float) <= 5  # for all others there is an exact integer product


@pytest.mark.slow
def test_first_layers_differ_by_near_ties_only_when_images_are_real(case: tuple[str, Model, Lowered]) -> None:
    """Sums in FP32 and in int32 round a few elements per million to neighbouring integers."""
    _, model, lowered = case
    (batch,) = demo.committed_samples("test").take(256).batches(256)
    assert all(tensor.differing_ratio < 1e-5 for tensor in parity(model, lowered, batch.inputs)[:3])


@pytest.mark.slow
def test_file_answers_as_the_program_within_40_db_when_images_are_real(
    case: tuple[str, Model, Lowered],
) -> None:
    _, model, lowered = case
    found = compared(model, lowered)
    assert found.agreement is not None
    assert found.agreement >= 0.999
    assert found.sqnr_db >= 40
