"""Closed-form bias correction against the plain difference of mean outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.stages.quantize.correction import mean_shift

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("operator", "shape", "weight_shape", "arguments", "channels"),
    [
        (aten.linear.default, (64, 5, 6), (4, 6), (), (0, 1)),
        (aten.conv2d.default, (64, 6, 7, 7), (4, 6, 3, 3), ([2, 2], [1, 1]), (0, 2, 3)),
        (aten.conv2d.default, (64, 6, 7, 7), (6, 1, 3, 3), ([1, 1], [1, 1], [1, 1], 6), (0, 2, 3)),
        (aten.conv1d.default, (64, 6, 9), (4, 6, 3), ([1], [1]), (0, 2)),
    ],
    ids=["linear", "conv2d", "depthwise", "conv1d"],
)
def test_mean_shift_restores_the_mean_output_of_every_channel(
    operator,
    shape,
    weight_shape,
    arguments,
    channels,  # type: ignore[no-untyped-def]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x: Tensor = torch.rand(shape, generator=generator)
    weight = torch.randn(weight_shape, generator=generator)
    rounded = (weight * 2).round() / 2
    bias = torch.randn(weight_shape[0], generator=generator)
    corrected = bias + mean_shift(operator, x.mean(0, keepdim=True), weight - rounded, arguments)
    before = operator(x, weight, bias, *arguments).mean(channels)
    uncorrected = operator(x, rounded, bias, *arguments).mean(channels)
    after = operator(x, rounded, corrected, *arguments).mean(channels)
    assert (uncorrected - before).abs().max() > 0.01
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
