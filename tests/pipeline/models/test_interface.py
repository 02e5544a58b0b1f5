import pytest
import torch
from torch import nn

from pipeline.core import CheckpointError, TensorSpec
from pipeline.models.load import from_module


def test_from_module_names_every_output_and_copies_when_the_module_returns_a_tuple() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.layer(x), x

    module = Two()
    model = from_module(module, [TensorSpec(name="x", shape=(3,))])
    assert model.outputs == ("output", "output_1")
    assert model.module is not module
    assert module.training


def test_from_module_refuses_when_the_module_returns_no_tensors() -> None:
    class Mapped(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": x}

    with pytest.raises(CheckpointError, match="returns dict; it must return a tensor"):
        from_module(Mapped(), [TensorSpec(name="x", shape=(3,))])
