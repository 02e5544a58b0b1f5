from pathlib import Path

import torch

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
