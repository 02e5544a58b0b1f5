from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.core import CheckpointError, TensorSpec
from pipeline.models.capture import example_inputs
from pipeline.models.load import load
from pipeline.recipe import ModelSource
from tests.networks.structures import IMAGE, build

FACTORY = "tests.networks.structures:residual"


def source(path: Path, **changes: Any) -> ModelSource:
    return ModelSource(**{"checkpoint": path, "factory": FACTORY, "inputs": (IMAGE,), **changes})


@pytest.fixture
def module() -> nn.Module:
    return build("residual")


def test_load_gives_the_trained_outputs_when_weights_are_safetensors(module: nn.Module, tmp_path: Path) -> None:
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    model = load(source(Path("w.safetensors")), root=tmp_path)
    images = example_inputs((IMAGE,), 3)
    assert torch.equal(model.module(*images), module(*images))
    assert not model.module.training
    assert model.module is model.reference
    assert model.outputs == ("output",)
    assert model.history == ()


@pytest.mark.parametrize(
    ("name", "content", "changes", "message"),
    [
        ("w.safetensors", None, {}, "no such file"),
        ("w.safetensors", b"garbage", {}, "is not a safetensors file"),
        ("w.pt", b"garbage", {}, "never run|not a torch checkpoint"),
        ("w.pt2", b"garbage", {"factory": None, "inputs": ()}, "is not a torch.export program"),
        ("w.safetensors", {}, {"kwargs": {"widths": 3}}, "cannot be called with these kwargs"),
        ("w.safetensors", {}, {"factory": "builtins:dict"}, "returned dict, not a torch.nn.Module"),
        ("w.safetensors", {}, {"inputs": (TensorSpec(name="x", shape=(3, 8, 8)),)}, "the model fails on x"),
        ("w.safetensors", {}, {"outputs": ("a", "b")}, "2 names are given for 1 outputs"),
        ("w.safetensors", {}, {"classes": ("a", "b")}, "10 logits, but 2 classes"),
    ],
)
def test_load_refuses_with_one_message_when(
    name: str, content: bytes | dict | None, changes: dict, message: str, module: nn.Module, tmp_path: Path
) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        save_file(module.state_dict(), tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        load(source(tmp_path / name, **changes))
