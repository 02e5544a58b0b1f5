"""What the converter refuses or gets wrong, in the FP32 file: the package computes what torch computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core import TensorSpec
from targets.coreml import CoremlTarget
from tests.targets.coreml.programs import model_of

Function = Callable[[Tensor], Tensor]


class Calls(nn.Module):
    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


def running(norm: nn.InstanceNorm2d) -> nn.Module:
    for value in (norm.running_mean, norm.running_var):
        assert value is not None
        value.uniform_(0.3, 3.0)
    return norm


def slopes(count: int) -> nn.Module:
    layer = nn.PReLU(count)
    layer.weight.data.uniform_(0.1, 0.6)
    return layer


def transposed(*arguments: int, **settings: int) -> nn.Module:
    return nn.ConvTranspose2d(4, *arguments, **settings)


def masked(x: Tensor) -> Tensor:
    return (x @ x.transpose(-2, -1) + torch.triu(torch.full((5, 5), float("-inf")), 1)).softmax(-1)


def another_dtype(x: Tensor) -> Tensor:
    hidden, number = x > 0, torch.float32
    mask = torch.zeros_like(hidden, dtype=number).masked_fill(hidden, float("-inf"))
    return mask.exp() * torch.full_like(hidden, 0.5, dtype=number) + torch.ones_like(hidden, dtype=number)


def steps(x: Tensor, cell: nn.Module) -> Tensor:
    state = cell(x[:, 0])
    state = cell(x[:, 1], state)
    return state[0] if isinstance(state, tuple) else state


CASES: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "prelu (N, C)": ((4,), lambda: slopes(4)),
    "prelu (N, C, L)": ((4, 5), lambda: slopes(4)),
    "prelu (N, C, D, H, W)": ((4, 2, 3, 5), lambda: slopes(4)),
    "lstm cell": ((2, 4), lambda: Calls(steps, nn.LSTMCell(4, 3))),
    "gru cell": ((2, 4), lambda: Calls(steps, nn.GRUCell(4, 3))),
    "rnn cell": ((2, 4), lambda: Calls(steps, nn.RNNCell(4, 3))),
    "new tensors": ((4,), lambda: Calls(lambda x: x * x.new_ones(4) + x.new_full((1, 4), 0.5) + torch.ones_like(x))),
    "new tensors of another dtype": ((4,), lambda: Calls(another_dtype)),
    "differences": ((5, 4), lambda: Calls(lambda x: torch.diff(x, n=2, dim=1))),
    "minus infinity above the diagonal": ((5, 4), lambda: Calls(masked)),
    "instance norm, running": ((4, 5, 6), lambda: running(nn.InstanceNorm2d(4, affine=True, track_running_stats=True))),
    "instance norm, no gain": ((4, 5, 6), lambda: running(nn.InstanceNorm2d(4, track_running_stats=True))),
    "rms norm": ((4,), lambda: nn.RMSNorm(4)),
    "transposed, more output padding than padding": ((4, 5, 6), lambda: transposed(3, 2, stride=3, output_padding=2)),
    "transposed, dilated": ((4, 5, 6), lambda: transposed(3, 3, stride=2, dilation=3, padding=1, output_padding=2)),
    "transposed, groups": ((4, 5, 6), lambda: transposed(6, 3, stride=2, padding=1, output_padding=1, groups=2)),
    "transposed 3d": ((4, 2, 3, 5), lambda: nn.ConvTranspose3d(4, 2, 3, stride=2, padding=1, output_padding=1)),
    "negative padding": ((4, 5, 6), lambda: Calls(lambda x: F.pad(x, (-1, 2, 0, -2)))),
    "circular padding": ((4, 5, 6), lambda: nn.CircularPad2d((1, 2, 0, 3))),
    "matrix and vector": ((5, 4), lambda: Calls(lambda x, layer: x @ layer.weight[0], nn.Linear(4, 1))),
    "spectrum": ((16,), lambda: Calls(lambda x: torch.fft.rfft(x).abs())),
    "spectrum of another axis": ((8, 3), lambda: Calls(lambda x: torch.fft.rfft(x, 6, dim=1, norm="ortho").real)),
    "cosines": ((4, 6), lambda: Calls(lambda x: F.cosine_similarity(x, x.flip(1), dim=2))),
    "cosines, one a vector of zeros": ((4, 6), lambda: Calls(lambda x: F.cosine_similarity(x, x * 0.0))),
    "windows": ((4, 9), lambda: Calls(lambda x: x.unfold(2, 3, 2))),
    "hard shrink": ((4,), lambda: nn.Hardshrink()),
    "bicubic": ((4, 6, 9), lambda: Calls(lambda x: F.interpolate(x, size=(4, 13), mode="bicubic"))),
    "bicubic, corners": ((4, 6, 9), lambda: nn.Upsample(scale_factor=1.5, mode="bicubic", align_corners=True)),
    "bilinear, antialiased": (
        (4, 6, 9),
        lambda: Calls(lambda x: F.interpolate(x, size=(3, 4), mode="bilinear", antialias=True)),
    ),
    "bicubic, antialiased": (
        (4, 6, 9),
        lambda: Calls(lambda x: F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)),
    ),
    "bilinear by 0.7": ((4, 6, 9), lambda: Calls(lambda x: F.interpolate(x, scale_factor=0.7, mode="bilinear"))),
    "nearest by 0.7": ((4, 10, 9), lambda: Calls(lambda x: F.interpolate(x, scale_factor=0.7))),
    "nearest to a size": ((4, 6), lambda: Calls(lambda x: F.interpolate(x, size=10))),
    "nearest, exact": ((4, 6, 9), lambda: Calls(lambda x: F.interpolate(x, size=(4, 13), mode="nearest-exact"))),
    "asymmetric padding": ((4, 5, 6), lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(4, 3, 3, stride=2))),
}


@pytest.mark.parametrize("name", CASES)
def test_package_computes_what_torch_computes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape, build = CASES[name]
    model = model_of(build(), TensorSpec(name="x", shape=shape))
    target = CoremlTarget()
    session = target.load(target.lower(model, tmp_path, name="model"), threads=1)
    x = torch.randn(1, *shape)

    (outputs,) = session.run((x.numpy(),))
    np.testing.assert_allclose(outputs, model.module(x).detach().numpy(), rtol=1e-4, atol=2e-5)
