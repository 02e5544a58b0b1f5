import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from targets.tflite import TfliteTarget, flatbuffer
from tests.targets.tflite.programs import QuantizedConv, model, through_int8


class Pooled(nn.Module):
    """A padded pool behind a convolution, which the converter wraps in transposes."""

    def __init__(self):
        super().__init__()
        self.conv = QuantizedConv(3, 8)

    def forward(self, x):
        return through_int8(F.max_pool2d(self.conv(x), 3, 2, 1), 0.1, -128)


@pytest.mark.slow
def test_lower_leaves_no_transpose_within_the_network_when_a_pool_is_padded(tmp_path):
    lowered = TfliteTarget().lower(model(Pooled(), (3, 9, 12), quantized=True), tmp_path, name="model")
    tflite_model = flatbuffer.read_model(lowered.path.read_bytes())
    names = [flatbuffer.operator_name(tflite_model, operator) for operator in tflite_model.subgraphs[0].operators]
    assert names.count("TRANSPOSE") == 2  # NCHW comes in and goes out
    x = torch.randn(1, 3, 9, 12, generator=torch.Generator().manual_seed(4)) * 2
    (output,) = TfliteTarget().load(lowered, threads=1).run((x.numpy(),))
    assert np.abs(output - Pooled()(x).detach().numpy()).max() <= 0.1 * 1.001
