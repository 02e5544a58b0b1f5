"""Whole networks: saved for Core ML and run by the interpreter, against onnxruntime on the same network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.core import ModelArtifact
from pipeline.metrics import Comparison
from pipeline.program import example_inputs
from pipeline.target import Target
from targets.coreml import CoremlTarget
from targets.onnx import OnnxTarget
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
