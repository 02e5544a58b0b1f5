"""Inputs that are made: batch norms see in them what they were trained on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.core import DataError, Preprocessing, TensorSpec
from pipeline.data.synthetic import SyntheticSource, synthetic_samples

IMAGE = (TensorSpec(name="image", shape=(1, 8, 8)),)
UNIT = Preprocessing(scale=1 / 255, mean=(0.5,), std=(0.25,))  # 0 to 255 become -2 to 2


def trained() -> nn.Module:
    """A network whose batch norms have seen dark images with a bright left half, as no random image is."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3),
    )  # fmt: skip
    images = 0.3 * torch.rand(64, 1, 8, 8) - 1.8
    images[..., :4] += 3
    module(images)
    return module.eval()


def distances(module: nn.Module, inputs: Tensor) -> list[float]:
    """How far the means before each batch norm are from its own, in its standard deviations."""
    found = []
    for layer in module:  # type: ignore[attr-defined]
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            off = (inputs.mean((0, 2, 3)) - layer.running_mean) / layer.running_var.sqrt()
            found.append(float(off.square().mean().sqrt()))
        inputs = layer(inputs)
    return found


def made(module: nn.Module, count: int = 16, seed: int = 0) -> Tensor:
    return next(synthetic_samples(module, IMAGE, UNIT, count=count, seed=seed).batches(count)).inputs[0]


def random_images(count: int) -> Tensor:
    return made(nn.Flatten(), count)


@torch.no_grad()
def test_batch_norms_see_what_they_were_trained_on() -> None:
    module = trained()
    before, after = distances(module, random_images(16)), distances(module, made(module))
    assert all(value < 0.25 for value in after), after
    assert all(value > 2 * better for value, better in zip(before, after, strict=True)), (before, after)


@torch.no_grad()
def test_batch_norms_of_a_program_are_read_too() -> None:
    module = trained()
    program = torch.export.export(module, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.testing.assert_close(made(program.module()), made(module), atol=1e-3, rtol=1e-3)


def test_images_lie_in_the_range_of_the_preprocessing_and_repeat_with_the_seed() -> None:
    found = random_images(40)
    assert found.shape == (40, 1, 8, 8)
    assert -2 <= float(found.min()) < -1
    assert 1 < float(found.max()) <= 2
    assert torch.equal(found, random_images(40))
    neighbours = (found[..., 1:] - found[..., :-1]).abs().mean()
    others = (found - found[..., [4, 6, 0, 7, 2, 1, 3, 5]]).abs().mean()
    assert float(neighbours) < 0.8 * float(others)  # smooth, as images are


def test_source_says_what_its_inputs_were_made_from() -> None:
    for module, said in ((trained(), "the statistics of 2 batch norms"), (nn.Flatten(), "the range of the")):
        source = synthetic_samples(module, IMAGE, UNIT, count=3, seed=0).source
        assert isinstance(source, SyntheticSource)
        assert source.warning.startswith(
            "No real sample was seen in calibration: 3 synthetic inputs were made from " + said
        )


def test_integers_cannot_be_made() -> None:
    tokens = (TensorSpec(name="ids", shape=(4,), dtype="int64"),)
    with pytest.raises(DataError, match=r"data.calibration: synthetic: cannot be made for the input 'ids' of int64"):
        synthetic_samples(nn.Flatten(), tokens, UNIT, count=3, seed=0)


def test_integers_of_a_known_range_are_drawn_from_it() -> None:
    tokens = (TensorSpec(name="ids", shape=(40,), dtype="int64", range=(3, 5)),)
    (batch,) = synthetic_samples(nn.Identity(), tokens, UNIT, count=3, seed=0).batches(3)
    assert batch.inputs[0].dtype == torch.int64
    assert sorted(set(batch.inputs[0].flatten().tolist())) == [3, 4, 5]
