"""A transformer quantized and lowered with an open sequence length: the file follows the program at every length."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import targets
from pipeline.core import Model
from pipeline.models.capture import capture
from pipeline.recipe import OnnxConfig
from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.ranges.calibration import calibrate
from pipeline.stages.quantize.simulation import Simulation, convert
from pipeline.tasks.comparison import sqnr_db
from tests.networks.architectures import ARCHITECTURES

DYNAMIC = {"tokens": (1,)}


@pytest.mark.slow
def test_file_follows_the_program_at_three_lengths_when_the_sequence_is_dynamic(tmp_path: Path) -> None:
    bert = ARCHITECTURES["bert"]
    original = bert.model()
    graph = canonical_graph(original, capture(original.module, bert.inputs, dynamic=DYNAMIC))
    found = calibrate(graph, bert.samples(32, seed=1), batch_size=16)
    int8 = convert(Simulation(found).configure("minmax", "analytic"))
    model = Model(module=int8, reference=original.module, inputs=bert.inputs, outputs=("logits",), quantized=True)
    target = targets.get("onnx", OnnxConfig(dynamic=DYNAMIC))
    lowered = target.lower(model, tmp_path, name="model")
    sizes = onnx.load(lowered.path).graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_param for size in sizes] == ["batch", "tokens_1"]
    session = target.load(lowered, threads=1)
    for count, length in ((3, 5), (1, 9), (7, 16)):
        tokens = torch.randint(0, 64, (count, length), generator=torch.Generator().manual_seed(length))
        (logits,) = session.run((tokens.numpy(),))
        with torch.no_grad():
            expected = int8(tokens)
        assert sqnr_db(expected, torch.from_numpy(logits)) > 30
        assert np.array_equal(logits.argmax(1), expected.argmax(1).numpy())
