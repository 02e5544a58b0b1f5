"""What FP16 does not hold is computed in FP32; everything else stays in FP16."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.core import Model, TensorSpec
from pipeline.tasks.comparison import sqnr_db
from targets.coreml import CoremlTarget
from tests.targets.coreml.programs import model_of

IMAGE = TensorSpec(name="image", shape=(3, 6, 6))


class Large(nn.Module):
    """Two convolutions with large values between them."""

    def __init__(self, factor: float, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.other, self.between = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), between
        self.one.weight.data *= factor
        self.other.weight.data /= factor

    def forward(self, image: Tensor) -> Tensor:
        return self.other(self.between(self.one(image)))


def lowered(model: Model, folder: Path) -> tuple[float, tuple[str, ...]]:
    """SQNR in dB of the FP16 file, and its notes."""
    target = CoremlTarget()
    package = target.lower(model, folder, name="model", variant="fp16")
    images = torch.randn(1, *model.inputs[0].shape, generator=torch.Generator().manual_seed(1))
    (outputs,) = target.load(package, threads=1).run((images.numpy(),))
    with torch.no_grad():
        return sqnr_db(model.module(images), torch.from_numpy(outputs)), package.notes


@pytest.mark.parametrize(
    ("factor", "between", "kept"),
    [
        (1.0, torch.relu, 0),
        (2e5, torch.relu, 3),
        (2e5, nn.functional.gelu, 3),
        (1e3, torch.square, 2),
    ],
    ids=["in range", "relu", "gelu", "square"],
)
def test_operators_around_large_values_compute_in_fp32(
    factor: float, between: Callable[[Tensor], Tensor], kept: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    found, notes = lowered(model_of(Large(factor, between), IMAGE), tmp_path)
    assert found > 40
    assert [note for note in notes if "FP32" in note] == (
        [f"{kept} operators compute in FP32: FP16 does not hold their values"] if kept else []
    )


def test_real_samples_count_where_there_are_some(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = model_of(Large(30.0, torch.square), IMAGE)
    _, notes = lowered(model, tmp_path)
    assert not [note for note in notes if "FP32" in note]
    _, notes = lowered(dataclasses.replace(model, examples=(100 * torch.randn(4, *IMAGE.shape),)), tmp_path)
    assert [note for note in notes if "FP32" in note]


def test_masks_of_the_smallest_number_hide_tokens_in_fp16(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            hidden = (x[:, :, 0] > 1).float()[:, None]
            return (x @ x.transpose(1, 2) + hidden * torch.finfo(torch.float32).min).softmax(-1) @ x

    model = model_of(Masked(), TensorSpec(name="x", shape=(5, 4)))
    found, _ = lowered(model, tmp_path)
    assert found > 40
