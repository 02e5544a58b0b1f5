import pytest
import torch
from torch import Tensor, nn

from pipeline.core import StageError, TensorSpec
from pipeline.data.samples import SampleSet
from pipeline.models.load import from_module
from pipeline.models.structure import restore_module, save_module
from pipeline.recipe import PruneConfig
from pipeline.stages.prune import prune
from pipeline.stages.prune.blocks import removable_blocks, without_blocks
from tests.networks.architectures import Architecture
from tests.networks.structures import IMAGE, build

VECTOR = (TensorSpec(name="x", shape=(8,)),)


class Block(nn.Module):
    """x + scale * f(x): the larger the scale, the more it matters."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.layer = scale, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.layer(x).tanh()


class Deep(nn.Module):
    """Three residual blocks, one that is called twice, and one that is no residual."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(1.0), Block(0.01), Block(0.1))
        self.twice, self.plain = Block(0.5), nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.plain(self.twice(self.twice(self.blocks(x)))))


def deep() -> Architecture:
    return Architecture("deep", Deep, VECTOR)


def samples() -> SampleSet:
    return deep().samples(64)


def test_removable_blocks_are_those_with_an_identity_shortcut_that_run_once() -> None:
    assert removable_blocks(deep().model().module, VECTOR)[0] == ("blocks.0", "blocks.1", "blocks.2")


def test_removable_blocks_leave_out_a_block_whose_shape_changes() -> None:
    found, _ = removable_blocks(build("residual"), (IMAGE,))
    assert found == ("layers.0",)  # layers.1 has a strided shortcut


def test_removable_blocks_say_so_when_the_caller_needs_the_block() -> None:
    class Caller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = Block(1.0), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(x) * self.block.scale)

    found, needed = removable_blocks(Caller(), VECTOR)
    assert found == ()
    assert [(layer.layer, layer.reason) for layer in needed] == [("block", "without this block the model does not run")]


def test_prune_removes_the_blocks_that_move_the_outputs_least_and_restores_when_a_ratio_is_given(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    before = deep().model()
    after = prune(before, PruneConfig(blocks_ratio=0.7), samples())
    removed = [(item["block"], item["removed"]) for item in after.history[-1].details["blocks"]]
    assert removed == [("blocks.1", True), ("blocks.2", True), ("blocks.0", False)]
    assert isinstance(after.module.blocks[1], nn.Identity)
    assert after.history[-1].parameters == sum(p.numel() for p in before.module.parameters()) - 2 * (8 * 8 + 8)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    module = before.module
    by_hand = module.head(module.plain(module.twice(module.twice(module.blocks[0](x)))))
    assert torch.equal(after.module(x), by_hand)
    path = tmp_path_factory.mktemp("blocks") / "module.safetensors"
    save_module(after.module, path)
    assert torch.equal(restore_module(Deep(), path)(x), by_hand)
    widths = {layer["layer"]: layer["after"] for layer in after.history[-1].details["layers"]}
    assert (widths["blocks.0.layer"], widths["blocks.1.layer"]) == (8, 0)


def test_without_blocks_changes_no_bit_of_its_input() -> None:
    module = deep().model().module
    without_blocks(module, ["blocks.0"])
    assert isinstance(module.blocks[0], Block)


def test_prune_keeps_a_named_block_and_refuses_when_there_is_no_other() -> None:
    with pytest.raises(StageError, match="no residual block to remove"):
        prune(deep().model(), PruneConfig(blocks_ratio=0.5, skip=("blocks",)), samples())


def test_prune_refuses_blocks_ratio_when_there_are_no_samples() -> None:
    with pytest.raises(StageError, match="blocks_ratio needs samples"):
        prune(from_module(Deep(), VECTOR), PruneConfig(blocks_ratio=0.5))
