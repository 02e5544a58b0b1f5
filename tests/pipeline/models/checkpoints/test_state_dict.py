import json
import zipfile
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
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
        f"{tmp_path / 'w.safetensors'}: does not fit ResNet: missing classifier.bias [10], where the file has "
        "head.bias; classifier.weight is [5, 32] where the factory builds [10, 32]\n"
        "  fix: give the factory and kwargs that the weights were trained with"
    )


def test_load_counts_the_rest_when_there_are_many_mismatches(module: nn.Module, tmp_path: Path) -> None:
    weights = {f"{name}.old": tensor for name, tensor in module.state_dict().items()}
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=rf"and {len(weights) - 5} more"):  # each with its nearest name
        load(source(tmp_path / "w.safetensors"))


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


SIZES = {"0.weight": [3, 2], "0.bias": [3], "1.weight": [3], "1.bias": [3], "1.running_mean": [3], "1.running_var": [3]}


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


class Wrapped(nn.Module):
    """A network whose names all start with ``body.net.``, and whose two weights are one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"net": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))})
        self.body["net"][1].weight = self.body["net"][0].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body["net"](x)  # type: ignore[no-any-return]


def filled(value: float = 2.0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Weights of `small`."""
    return {name: torch.full(size, value, dtype=dtype) for name, size in SIZES.items()}


def prefixed(prefix: str, weights: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in weights.items()}


def loaded(tmp_path: Path, content: Any, factory: str = "small", weights: str | None = None) -> Any:
    """The `Model` of a torch file with this content."""
    torch.save(content, tmp_path / "w.pt")
    inputs = (TensorSpec(name="x", shape=(2,)),)
    return load(
        ModelSource(checkpoint=Path("w.pt"), factory=f"{__name__}:{factory}", inputs=inputs, weights=weights), tmp_path
    )


class Config:
    """Something of a training script's own."""


ELSEWHERE = {0: {"exp_avg": torch.zeros(3)}}
KINDS: dict[str, tuple[Any, str]] = {
    **{key: ({key: filled(), "epoch": 3}, f"under '{key}'") for key in ("net", "ema", "params", "anything")},
    "two levels": ({"model": {"ema": filled()}, "optimizer": {"state": ELSEWHERE}}, "under 'model.ema'"),
    "Lightning": (
        {"state_dict": {**prefixed("model.", filled()), "criterion.weight": torch.ones(4)}},
        "other tensors were left out (1): state_dict.criterion.weight",
    ),
    "a tuple": ((filled(), {"epoch": 3}), "under '0'"),
    "numbers as keys": ({0: filled(), "optimizer": {"state": ELSEWHERE}}, "under '0'"),
    "several wrappers": (prefixed("module._orig_mod.net.", filled()), "under 'module._orig_mod.net'"),
    "wrapped layers": (
        {name.replace(".", ".module.", 1): value for name, value in filled().items()},
        "",
    ),
    "another network's weights beside": ({"G": filled(), "D": {"0.weight": torch.ones(5, 5)}}, "under 'G'"),
    "one tensor under two keys": ((lambda same: {"model": same, "net": dict(same)})(filled()), "under 'model'"),
    "counters": ({**filled(), "1.num_batches_tracked": torch.tensor(7)}, ""),
    "indices": ({**filled(), "position_ids": torch.arange(4)}, "left out (1): position_ids"),
    "half": (filled(dtype=torch.float16), "weights stored as float16 were converted to float32"),
    "bfloat16": (filled(dtype=torch.bfloat16), "weights stored as bfloat16 were converted to float32"),
    "double": (filled(dtype=torch.float64), "weights stored as float64 were converted to float32"),
    "NumPy numbers": ({"net": filled(), "best": np.float64(0.93)}, "not read: numpy"),
    "a namespace": ({"net": filled(), "args": Namespace(lr=0.1, net=Config())}, "not read: argparse.Namespace"),
    "a class of one's own": ({"net": filled(), "config": Config(), "kind": Config}, "Config"),
    "a default dictionary": ({"net": defaultdict(list, filled())}, "under 'net'"),
    "a path": ({"net": filled(), "from": Path("a")}, "not read: pathlib"),
}


@pytest.mark.parametrize(("content", "note"), KINDS.values(), ids=KINDS)
def test_weights_are_found_wherever_a_training_script_put_them(content: Any, note: str, tmp_path: Path) -> None:
    model = loaded(tmp_path, content)
    assert model.module(torch.ones(1, 2)).tolist() == [[pytest.approx(2 * 4 / (2 + 1e-5) ** 0.5 + 2)] * 3]
    assert note in "; ".join(model.notes)
    assert bool(model.notes) == bool(note)


def test_one_of_several_weights_is_chosen_by_its_key(tmp_path: Path) -> None:
    content = {"model": filled(1.0), "ema": prefixed("module.", filled(3.0)), "epoch": 1}
    with pytest.raises(CheckpointError, match=r"several weights that fit Sequential: model, ema\.module") as caught:
        loaded(tmp_path, content)
    assert caught.value.fix == "choose: model: {weights: model}"
    assert loaded(tmp_path, content, weights="ema").module[0].bias.tolist() == [3.0] * 3
    assert loaded(tmp_path, content, weights="model").module[0].bias.tolist() == [1.0] * 3
    with pytest.raises(CheckpointError, match=r"has no weights 'best'; there are model, ema") as caught:
        loaded(tmp_path, content, weights="best")
    assert caught.value.fix == "correct model.weights"


def test_words_that_the_file_lacks_are_added_and_tied_weights_are_filled_once(tmp_path: Path) -> None:
    weights = {"0.weight": torch.ones(2, 2), "0.bias": torch.zeros(2), "1.bias": torch.ones(2)}
    for content in (weights, prefixed("net.", weights), prefixed("x.body.net.", weights)):
        model = loaded(tmp_path, content, "Wrapped")
        assert model.module(torch.ones(1, 2)).tolist() == [[5.0, 5.0]]
    assert "lack the network's 'body.net.'" in loaded(tmp_path, weights, "Wrapped").notes[0]
    with pytest.raises(CheckpointError, match=r"differs from body\.net\.0\.weight, and the factory builds them as one"):
        loaded(tmp_path, {**weights, "1.weight": torch.zeros(2, 2)}, "Wrapped")


def weight_normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)))


def test_names_of_the_older_weight_norm_are_known(tmp_path: Path) -> None:
    weights = {"weight_g": torch.full((3, 1), 5.0), "weight_v": torch.tensor([[3.0, 4.0]] * 3), "bias": torch.zeros(3)}
    model = loaded(tmp_path, prefixed("module.0.", weights), "weight_normed")
    assert model.module(torch.ones(1, 2)).tolist() == [[7.0, 7.0, 7.0]]


def test_shards_are_read_from_beside_their_index(tmp_path: Path) -> None:
    weights = filled()
    for number, part in enumerate((list(weights)[:2], list(weights)[2:])):
        save_file({name: weights[name] for name in part}, tmp_path / f"part-{number}.safetensors")
    index = {"weight_map": {name: f"part-{int(number > 1)}.safetensors" for number, name in enumerate(weights)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = ModelSource(
        checkpoint=Path("model.safetensors.index.json"),
        factory=f"{__name__}:small",
        inputs=(TensorSpec(name="x", shape=(2,)),),
    )
    assert float(load(sharded, tmp_path).module(torch.ones(1, 2))[0, 0]) == pytest.approx(7.657, abs=1e-3)
    index["weight_map"]["0.bias"] = "../part-0.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names no files beside itself"):
        load(sharded, tmp_path)


def trained() -> nn.Module:
    network = small()
    network.load_state_dict(filled(), strict=False)
    return network


class Zoo:
    @staticmethod
    def trained(bias: float = 2.0) -> nn.Module:
        network = trained()
        nn.init.constant_(network[0].bias, bias)  # type: ignore[index]
        return network


@pytest.mark.parametrize("factory", ["trained", "Zoo.trained"])
def test_a_factory_may_give_its_own_weights(factory: str) -> None:
    inputs = (TensorSpec(name="x", shape=(2,)),)
    model = load(ModelSource(factory=f"{__name__}:{factory}", inputs=inputs))
    assert float(model.module(torch.ones(1, 2))[0, 0]) == pytest.approx(7.657, abs=1e-3)


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
    with pytest.raises(CheckpointError, match=rf"is an? {kind} .*(starts from|a network of its own)"):
        load(linear(path))
