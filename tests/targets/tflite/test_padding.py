"""PADs merged into convolutions: the file has none left, and gives the integers that the program gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from targets.tflite import TfliteTarget, flatbuffer
from targets.tflite.padding import same_padding
from tests.targets.tflite.programs import model


class Padded(nn.Module):
    """Convolutions that each read a feature map padded by so much."""

    def __init__(self, *widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.widths, self.first = widths, nn.Conv2d(3, 4, 1)
        self.convolutions = nn.ModuleList(nn.Conv2d(4, 4, 3, stride=2, groups=4 if index else 1) for index in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        parts = [conv(F.pad(y, width)) for conv, width in zip(self.convolutions, self.widths, strict=False)]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "widths", "left"),
    [
        pytest.param(8, [(0, 1, 0, 1), (0, 1, 0, 1)], 0, id="what SAME adds on an even size"),
        pytest.param(7, [(1, 1, 1, 1)], 0, id="what SAME adds on an odd size"),
        pytest.param(8, [(1, 0, 1, 0)], 1, id="the larger half in front"),
        pytest.param(8, [(1, 1, 1, 1)], 1, id="more than SAME adds"),
    ],
)
def test_convolutions_pad_for_themselves_what_same_adds(
    tmp_path: Path, size: int, widths: list[tuple[int, int, int, int]], left: int
) -> None:
    module = Padded(*widths).eval()
    lowered = TfliteTarget().lower(model(module, (3, size, size), quantized=False), tmp_path, name="model")
    tflite_model = flatbuffer.read_model(lowered.path.read_bytes())
    names = [flatbuffer.operator_name(tflite_model, operator) for operator in tflite_model.subgraphs[0].operators]
    assert names.count("PAD") == left
    x = torch.randn(1, 3, size, size)
    (found,) = TfliteTarget().load(lowered, threads=1).run((x.numpy(),))
    np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation"), [(16, 3, 2, 1), (15, 5, 3, 1), (9, 3, 1, 2), (4, 2, 3, 1)]
)
def test_same_padding_gives_one_window_per_step(size: int, kernel: int, stride: int, dilation: int) -> None:
    padded = size + sum(same_padding(size, kernel, stride, dilation))
    windows = (padded - (kernel - 1) * dilation - 1) // stride + 1
    assert windows == -(-size // stride)
