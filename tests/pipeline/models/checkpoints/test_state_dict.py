import zipfile
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


def linear(path: Path, **kwargs: Any) -> ModelSource:
    """A layer of 2 inputs and 2 outputs."""
    sizes = {"in_features": 2, "out_features": 2, **kwargs}
    return ModelSource(
        checkpoint=path, factory="torch.nn:Linear", kwargs=sizes, inputs=(TensorSpec(name="x", shape=(2,)),)
    )


@pytest.fixture
def module() -> nn.Module:
    return build("residual")


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
def test_load_gives_the_trained_outputs_when_weights_are_a_pt(
    wrapper: str | None, module: nn.Module, tmp_path: Path
) -> None:
    weights = module.state_dict()
    torch.save(weights if wrapper is None else {wrapper: weights, "epoch": 3}, tmp_path / "w.pt")
    model = load(source(tmp_path / "w.pt"))
    images = example_inputs((IMAGE,), 3)
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


def test_load_refuses_when_a_weight_is_not_finite(module: nn.Module, tmp_path: Path) -> None:
    weights = module.state_dict()
    weights["classifier.bias"][3] = float("nan")
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"classifier\.bias holds NaN or infinity"):
        load(source(tmp_path / "w.safetensors"))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3))


def test_lazy_layers_take_the_sizes_of_their_weights_when_a_state_dict_is_loaded(tmp_path: Path) -> None:
    weights = {"0.weight": torch.arange(12.0).reshape(3, 4), "0.bias": torch.ones(3)}
    save_file(weights, tmp_path / "w.safetensors")
    inputs = (TensorSpec(name="x", shape=(4,)),)
    model = load(ModelSource(factory=f"{__name__}:lazy", checkpoint=Path("w.safetensors"), inputs=inputs), tmp_path)
    assert model.module(torch.ones(1, 4)).tolist() == [[7.0, 23.0, 39.0]]
    save_file({"0.bias": torch.ones(3)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"missing 0\.weight of a lazy layer"):
        load(ModelSource(factory=f"{__name__}:lazy", checkpoint=Path("w.safetensors"), inputs=inputs), tmp_path)


def test_load_refuses_a_weight_of_another_shape_without_looking_at_its_values(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "w.pt")  # 4 TiB, if it is copied
    with pytest.raises(CheckpointError, match=r"weight is \[1048576, 1048576\] where the factory builds \[2, 2\]"):
        load(linear(tmp_path / "w.pt", bias=False))


@pytest.mark.parametrize("kind", ["TorchScript", "Keras", "HDF5"])
def test_load_says_so_when_weights_are_a_whole_model(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "w.pt"
    if kind == "TorchScript":
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), str(path))
    elif kind == "Keras":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", "{}")
    else:
        path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(CheckpointError, match=rf"is an? {kind} .*may hold code and is never loaded"):
        load(linear(path))
