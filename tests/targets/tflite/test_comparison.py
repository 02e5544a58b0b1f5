import numpy as np
import pytest
import torch
from torch import nn

from pipeline.core import TargetError
from pipeline.recipe import TfliteConfig
from pipeline.tasks.comparison import sqnr_db
from targets.tflite import TfliteTarget, comparison, flatbuffer
from tests.targets.tflite.programs import model


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "dtype", "least_db"), [("fp16", "FLOAT16", 60), ("int8_dynamic", "INT8", 30)])
def test_lower_stores_weights_in_the_variants_type(tmp_path, variant, dtype, least_db):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    target = TfliteTarget(TfliteConfig(variants=(variant,)))
    float_model = model(network, (64,), quantized=False)
    original = target.lower(float_model, tmp_path, name="original")
    lowered = target.lower(float_model, tmp_path, name="variant", variant=variant)
    assert lowered.variant == target.open(lowered.path).variant == variant
    graph = flatbuffer.read_model(lowered.path.read_bytes()).subgraphs[0]
    weights = {flatbuffer.dtype_name(tensor) for tensor in graph.tensors if list(tensor.shape) == [64, 64]}
    assert dtype in weights
    assert lowered.size_bytes < 0.7 * original.size_bytes
    x = torch.randn(1, 64)
    (output,) = target.load(lowered, threads=1).run((x.numpy(),))
    assert sqnr_db(network(x).detach(), torch.from_numpy(np.array(output))) > least_db


def test_encode_gives_the_tools_reason_when_it_fails():
    with pytest.raises(TargetError, match="ai-edge-quantizer cannot make a fp16 model of it"):
        comparison.encode(b"nonsense", "fp16")
