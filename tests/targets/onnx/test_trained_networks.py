"""The file against the quantized program on real images, for four trained networks: parity, and where the work runs."""

import pytest
import torch

import targets
from calibration_data.fashion_mnist import train as demo
from calibration_data.fashion_mnist.harder import train as harder
from pipeline.core import ModelArtifact
from pipeline.metrics import Comparison, predictor, session_predictor
from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.quantize import quantize
from pipeline.target import Lowered
from targets.onnx.parity import parity
from targets.onnx.placement import kernels

IMAGES = 2000
LEFT_IN_FLOAT = {
    "resnet": set(),
    "mobilenet_v2": set(),
    "mobilenet_v3": {"DequantizeLinear", "HardSigmoid", "Mul", "QuantizeLinear"},  # hardswish where no product is exact
    "efficientnet": set(),
}


def quantized(name: str) -> ModelArtifact:
    """Calibrated on 128 images, with the first range that serves."""
    module = (demo.load_trained() if name == "resnet" else harder.load_trained(name)).eval()
    artifact = ModelArtifact(module=module, reference=module, inputs=(demo.IMAGE,), outputs=("logits",))
    config = QuantizeConfig(observers=("minmax",), equalisation=False, mixed_precision=False)
    return quantize(artifact, config, demo.committed_samples("train").take(128), budget=Budget(metric="agreement"))


def compared(artifact: ModelArtifact, lowered: Lowered) -> Comparison:
    program = predictor(artifact.module)
    file = session_predictor(targets.get("onnx").load(lowered, threads=1))
    found = Comparison()
    with torch.no_grad():
        for batch in demo.committed_samples("test").take(IMAGES).batches(256):
            found.update(file(batch.inputs), program(batch.inputs))
    return found


@pytest.fixture(scope="module", params=LEFT_IN_FLOAT)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ModelArtifact, Lowered]:
    artifact = quantized(request.param)
    lowered = targets.get("onnx").lower(artifact, tmp_path_factory.mktemp(request.param), name="model")
    return request.param, artifact, lowered


@pytest.mark.slow
def test_convolutions_and_products_run_on_integer_kernels_when_the_network_was_trained(
    case: tuple[str, ModelArtifact, Lowered],
) -> None:
    name, _, lowered = case
    executed = kernels(lowered)
    assert {kernel.op for kernel in executed if not kernel.on_integers} <= LEFT_IN_FLOAT[name]
    assert not [kernel.op for kernel in executed if kernel.op in ("Conv", "Gemm", "MatMul")]
    in_float = [kernel.op for kernel in executed if kernel.op == "HardSigmoid"]
    assert len(in_float) <= 5  # for all others there is an exact integer product


@pytest.mark.slow
def test_first_layers_differ_by_near_ties_only_when_images_are_real(case: tuple[str, ModelArtifact, Lowered]) -> None:
    """Sums in FP32 and in int32 round a few elements per million to neighbouring integers."""
    _, artifact, lowered = case
    (batch,) = demo.committed_samples("test").take(256).batches(256)
    assert all(tensor.differing_ratio < 1e-5 for tensor in parity(artifact, lowered, batch.inputs)[:3])


@pytest.mark.slow
def test_file_answers_as_the_program_within_40_db_when_images_are_real(
    case: tuple[str, ModelArtifact, Lowered],
) -> None:
    _, artifact, lowered = case
    found = compared(artifact, lowered)
    assert found.agreement is not None
    assert found.agreement >= 0.999
    assert found.sqnr_db >= 40
