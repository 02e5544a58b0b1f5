from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.core import CheckpointError
from pipeline.models.capture import example_inputs
from pipeline.models.load import load
from pipeline.recipe import ModelSource
from tests.networks.structures import IMAGE, build


def test_load_reads_inputs_from_the_signature_when_the_checkpoint_is_a_pt2(tmp_path: Path) -> None:
    module = build("residual")
    images = example_inputs((IMAGE,), 3)
    program = torch.export.export(module, images, dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, tmp_path / "m.pt2")
    model = load(ModelSource(checkpoint=tmp_path / "m.pt2"))
    assert model.inputs == (IMAGE,)
    assert torch.equal(model.module(*images), module(*images))


class KeywordsAndKeys(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 4), nn.ReLU())

    def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
        return {"y": self.body(x) * scale[:, None], "turned": (x * 2).T}


def saved(module: nn.Module, args: tuple[Tensor, ...], path: Path, **kwargs: Tensor) -> ModelSource:
    shapes = {name: {0: torch.export.Dim.AUTO} for name in ("x", *kwargs)}
    torch.export.save(torch.export.export(module.eval(), args, kwargs, dynamic_shapes=shapes), path)
    return ModelSource(checkpoint=path)


def test_a_program_with_keywords_and_a_dictionary_becomes_tensors_by_position(tmp_path: Path) -> None:
    module = KeywordsAndKeys()
    model = load(saved(module, (torch.randn(2, 6),), tmp_path / "m.pt2", scale=torch.randn(2)))
    assert [each.name for each in model.inputs] == ["x", "scale"]
    assert model.outputs == ("y", "turned")
    x, scale = torch.randn(3, 6), torch.randn(3)
    y, turned = model.module(x, scale)
    torch.testing.assert_close(y, module(x, scale=scale)["y"])
    assert torch.equal(turned, x * 2)


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float() * 2


def test_a_program_with_an_input_of_another_precision_is_refused(tmp_path: Path) -> None:
    source = saved(Rounded(), (torch.randn(2, 3, dtype=torch.float64),), tmp_path / "m.pt2")
    with pytest.raises(CheckpointError, match="'x' is float64; inputs are one of float32"):
        load(source)
