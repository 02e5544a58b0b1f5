"""Whole networks: saved for Core ML and run by the interpreter, against other runtimes on the same network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core import ModelArtifact
from pipeline.metrics import Comparison, predictor
from pipeline.program import example_inputs
from pipeline.recipe import Budget, CoremlConfig, QuantizeConfig
from pipeline.stages.quantize import quantize
from pipeline.target import Target
from targets.coreml import CoremlTarget
from targets.onnx import OnnxTarget
from tests import models
from tests.architectures import ARCHITECTURES


def comparison(tested: Target, reference: Target, artifact: ModelArtifact, folder: Path) -> Comparison:
    """The outputs of two targets for one batch."""
    inputs = tuple(tensor.numpy() for tensor in example_inputs(artifact.inputs, 1))
    outputs = []
    for target in (tested, reference):
        lowered = target.lower(artifact, folder, name="model")
        outputs.append(tuple(torch.from_numpy(array) for array in target.load(lowered, threads=1).run(inputs)))
    result = Comparison()
    result.update(*outputs)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float_network_equals_onnxruntime_to_60_db(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, spec = ARCHITECTURES[name]
    network = build().eval()
    artifact = ModelArtifact(module=network, reference=network, inputs=(spec,))
    assert comparison(CoremlTarget(), OnnxTarget(), artifact, tmp_path).sqnr_db >= 60


INT8_CNNS = ("resnet", "mobilenet_v2", "mobilenet_v3", "densenet", "unet", "control_flow")


@pytest.mark.slow
@pytest.mark.parametrize("name", INT8_CNNS)
def test_int8_cnn_equals_the_program_and_fp16_costs_less_than_int8(name: str, tmp_path: Path) -> None:
    """These networks are not trained, so every value that rounds differently grows from layer to layer."""
    architecture = models.ARCHITECTURES[name]
    budget = Budget(metric="agreement", max_drop=1.0)
    settings = QuantizeConfig(observers=("minmax",), equalisation=False)
    int8 = quantize(architecture.artifact(), settings, architecture.samples(32), budget=budget)
    (batch,) = architecture.samples(32, seed=2).batches(32)
    program = predictor(int8.module)(batch.inputs)

    exact = CoremlTarget(CoremlConfig(precision="float32"))
    assert sqnr(exact, int8, batch.inputs, program, tmp_path) >= 100
    half = sqnr(CoremlTarget(), int8, batch.inputs, program, tmp_path)
    cost_of_int8 = Comparison()
    cost_of_int8.update(program, predictor(int8.reference)(batch.inputs))
    assert half >= cost_of_int8.sqnr_db


def sqnr(
    target: CoremlTarget,
    artifact: ModelArtifact,
    inputs: tuple[Tensor, ...],
    expected: tuple[Tensor, ...],
    folder: Path,
) -> float:
    """In dB, of a package's outputs against expected ones."""
    session = target.load(target.lower(artifact, folder, name="model"), threads=1)
    outputs = session.run(tuple(tensor.numpy() for tensor in inputs))
    compared = Comparison()
    compared.update(tuple(torch.from_numpy(array) for array in outputs), expected)
    return compared.sqnr_db


CORE_AI = Path(__file__).parents[1] / "core_ai"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in CORE_AI.glob("*.npz")))
def test_float_network_equals_apples_core_ai_runtime(name: str, tmp_path: Path) -> None:
    """Its outputs are kept beside the script that makes them."""
    architecture = models.ARCHITECTURES[name]
    (batch,) = architecture.samples(8, seed=2).batches(8)
    target = CoremlTarget()
    lowered = target.lower(architecture.artifact(), tmp_path, name="model")
    (ours,) = target.load(lowered, threads=1).run(tuple(tensor.numpy() for tensor in batch.inputs))
    with np.load(CORE_AI / f"{name}.npz") as stored:
        theirs = stored["outputs"]
    compared = Comparison()
    compared.update((torch.from_numpy(ours),), (torch.from_numpy(theirs),))
    assert compared.sqnr_db >= 60
    np.testing.assert_array_equal(ours.argmax(1), theirs.argmax(1))
