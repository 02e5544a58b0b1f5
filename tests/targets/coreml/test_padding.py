"""Explicit padding is part of the convolution that reads it; what a convolution cannot hold stays before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.recipe import CoremlConfig
from targets.coreml import CoremlTarget
from targets.coreml.interpreter.package import read_package
from targets.coreml.interpreter.program import read_program
from tests.targets.coreml.programs import HandQuantized, model_of


class Padded(HandQuantized):
    """A quantized image, padded and on the same grid again unless another is given, and a quantized convolution."""

    def __init__(self, pad: Callable[[Tensor], Tensor], scale: float = 2**-5) -> None:
        super().__init__()
        self.pad, self.scale = pad, scale

    def forward(self, image: Tensor) -> Tensor:
        x = self._activation(self.pad(self._activation(image, 2**-5, 5)), self.scale, 5)
        return self._activation(F.conv2d(x, self._weight(self.conv_weight), self.conv_bias, padding=1), 2**-3, 3)


@pytest.mark.parametrize(
    ("pad", "scale", "left"),
    [
        (lambda x: F.pad(x, (1, 2, 0, 3)), 2**-5, 0),
        (lambda x: F.pad(x, (0, 1, 0, 1)), 2**-5, 0),
        (lambda x: F.pad(x, (0, 1, 0, 1)), 2**-4, 1),
        (lambda x: F.pad(x, (0, 1, 0, 1), value=0.5), 2**-5, 1),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 2**-5, 1),
    ],
    ids=["each side its own", "at the end", "another grid", "not zero", "reflected"],
)
def test_pad_is_part_of_the_convolution(
    pad: Callable[[Tensor], Tensor], scale: float, left: int, tmp_path: Path
) -> None:
    model = model_of(Padded(pad, scale), quantized=True)
    target = CoremlTarget(CoremlConfig(precision="float32"))
    lowered = target.lower(model, tmp_path, name="model")
    images = torch.randint(-100, 100, (1, 1, 28, 28)) * 2.0**-5

    (outputs,) = target.load(lowered, threads=1).run((images.numpy(),))
    np.testing.assert_array_equal(outputs, model.module(images).detach().numpy())
    assert count(lowered.path)["pad"] == left


def test_pad_that_something_else_reads_is_kept_for_that(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            padded = F.pad(image, (0, 1, 2, 0))
            return self.conv(padded), padded * 2

    model = model_of(Shared())
    model = type(model)(module=model.module, reference=model.module, inputs=model.inputs, outputs=("a", "b"))
    target = CoremlTarget()
    lowered = target.lower(model, tmp_path, name="model")
    images = torch.randn(1, 1, 28, 28)

    for found, expected in zip(
        target.load(lowered, threads=1).run((images.numpy(),)), model.module(images), strict=True
    ):
        np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)
    assert count(lowered.path)["pad"] == 1


def count(path: Path) -> Counter[str]:
    return read_program(read_package(path)).count_operators()
