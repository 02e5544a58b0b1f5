import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.core import CheckpointError
from pipeline.models.capture import example_inputs
from pipeline.models.load import from_module
from pipeline.models.structure import restore_module, save_module
from pipeline.recipe import PruneConfig
from pipeline.stages.prune import prune
from tests.networks.structures import IMAGE, NETWORKS, build


@pytest.mark.parametrize("name", NETWORKS)
def test_restore_module_is_bit_exact_when_a_pruned_module_goes_onto_a_fresh_factory_module(
    name: str, tmp_path: Path
) -> None:
    pruned = prune(from_module(build(name), (IMAGE,)), PruneConfig(macs_ratio=0.5)).module
    save_module(pruned, tmp_path / "module.safetensors")
    restored = restore_module(build(name, seed=1), tmp_path / "module.safetensors")
    images = example_inputs((IMAGE,), 4)
    assert torch.equal(restored(*images), pruned(*images))
    assert str(restored) == str(pruned)  # in_channels, groups, num_features … are those of the pruned layers
    assert not restored.training
    assert [path.name for path in tmp_path.iterdir()] == ["module.safetensors"]


def test_restore_module_keeps_weights_tied_when_they_were(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 5)
            self.head = nn.Linear(5, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.embedding(tokens))

    module = Tied()
    save_module(module, tmp_path / "tied.safetensors")
    restored = restore_module(Tied(), tmp_path / "tied.safetensors")
    assert restored.head.weight is restored.embedding.weight
    assert torch.equal(restored.head.weight, module.head.weight)


def test_restore_module_keeps_buffers_and_gradient_flags_when_they_are_not_in_the_state_dict(tmp_path: Path) -> None:
    class Buffered(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.register_buffer("positions", torch.arange(size), persistent=False)
            self.frozen = nn.Parameter(torch.ones(size), requires_grad=False)

    save_module(Buffered(4), tmp_path / "b.safetensors")
    restored = restore_module(Buffered(9), tmp_path / "b.safetensors")
    assert restored.positions.tolist() == [0, 1, 2, 3]
    assert restored.frozen.tolist() == [1, 1, 1, 1]
    assert not restored.frozen.requires_grad


def test_restore_module_reads_a_file_when_it_is_from_before_blocks_could_leave(tmp_path: Path) -> None:
    module, path = build("residual"), tmp_path / "old.safetensors"
    save_module(module, path)
    with safe_open(path, framework="pt") as file:
        (key, structure), *_ = file.metadata().items()
    old = {name: value for name, value in json.loads(structure).items() if name != "identities"}
    save_file(load_file(path), path, metadata={key: json.dumps(old)})
    restored = restore_module(build("residual", seed=1), path)
    images = example_inputs((IMAGE,), 4)
    assert torch.equal(restored(*images), module.eval()(*images))


def test_restore_module_refuses_when_the_architecture_differs(tmp_path: Path) -> None:
    save_module(build("mobile"), tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="another architecture than ResNet"):
        restore_module(build("residual"), tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no", "not a readable safetensors file"), (None, "no such file"), ({}, "weights without a structure")],
    ids=["garbage", "absent", "plain weights"],
)
def test_restore_module_refuses_when_the_file_is(content: bytes | dict | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_file(build("residual").state_dict(), path)
    with pytest.raises(CheckpointError, match=message):
        restore_module(build("residual"), path)
