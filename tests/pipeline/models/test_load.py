from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.core import CheckpointError, TensorSpec
from pipeline.models.capture import example_inputs
from pipeline.models.load import from_module, load
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


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
def test_load_gives_the_trained_outputs_when_weights_are_a_pt(
    wrapper: str | None, module: nn.Module, tmp_path: Path
) -> None:
    weights = module.state_dict()
    torch.save(weights if wrapper is None else {wrapper: weights, "epoch": 3}, tmp_path / "w.pt")
    model = load(source(tmp_path / "w.pt"))
    images = example_inputs((IMAGE,), 3)
    assert torch.equal(model.module(*images), module(*images))


def test_load_reads_inputs_from_the_signature_when_the_checkpoint_is_a_pt2(module: nn.Module, tmp_path: Path) -> None:
    images = example_inputs((IMAGE,), 3)
    program = torch.export.export(module, images, dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, tmp_path / "m.pt2")
    model = load(ModelSource(checkpoint=tmp_path / "m.pt2"))
    assert model.inputs == (IMAGE,)
    assert torch.equal(model.module(*images), module(*images))


def test_load_names_the_first_mismatches_when_weights_do_not_fit(module: nn.Module, tmp_path: Path) -> None:
    weights = module.state_dict()
    del weights["classifier.bias"]
    weights["head.bias"] = torch.zeros(10)
    weights["classifier.weight"] = torch.zeros(5, 32)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(source(tmp_path / "w.safetensors"))
    assert str(caught.value) == (
        f"{tmp_path / 'w.safetensors'}: does not fit ResNet: missing classifier.bias [10]; unexpected head.bias [10]; "
        "classifier.weight is [5, 32] where the factory builds [10, 32]\n"
        "  fix: give the factory and kwargs that the weights were trained with"
    )


def test_load_counts_the_rest_when_there_are_many_mismatches(module: nn.Module, tmp_path: Path) -> None:
    weights = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=rf"and {2 * len(weights) - 5} more") as caught:
        load(source(tmp_path / "w.safetensors"))
    assert caught.value.fix == "strip DataParallel's 'module.' from the keys"


def test_load_runs_no_code_when_a_pt_holds_a_pickled_object(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "was_run",)

    torch.save({"weights": Harmful()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="holds pickled code, which is never run"):
        load(source(tmp_path / "w.pt"))
    assert not (tmp_path / "was_run").exists()


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


def test_load_refuses_when_a_weight_is_not_finite(module: nn.Module, tmp_path: Path) -> None:
    weights = module.state_dict()
    weights["classifier.bias"][3] = float("nan")
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"classifier\.bias holds NaN or infinity"):
        load(source(tmp_path / "w.safetensors"))


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
