"""Names, patterns and types of layers: what they stand for, and what is said where they stand for nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline import from_module
from pipeline.core import RecipeError, StageError, TensorSpec
from pipeline.models.layers import layers_of, matching, matching_in


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


PROGRAM = torch.export.export(Body().eval(), (torch.ones(2, 4),)).module()


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("head", ["head"]),
        ("blocks.*.0", ["blocks.0.0", "blocks.1.0"]),
        ("blocks.[1].*", ["blocks.1.0", "blocks.1.1"]),
        ("?ead", ["head"]),
        ("type:LayerNorm", ["norm"]),
        ("type:Linear", ["stem", "blocks.0.0", "blocks.1.0", "head"]),
    ],
)
@pytest.mark.parametrize("network", [Body(), PROGRAM], ids=["module", "program"])
def test_pattern_stands_for_the_same_layers_in_a_module_and_in_its_program(
    network: nn.Module, pattern: str, names: list[str]
) -> None:
    found = matching(layers_of(network), [pattern], where="layers")[pattern]
    assert sorted(found) == sorted(names)


def test_type_stands_for_subclasses_too() -> None:
    class OwnLinear(nn.Linear):
        pass

    network = nn.Sequential(OwnLinear(2, 2), nn.ReLU())
    assert matching(layers_of(network), ["type:Linear", "type:OwnLinear"], where="layers") == {
        "type:Linear": ("0",),
        "type:OwnLinear": ("0",),
    }


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("haed", "'head'"),
        ("hed.*", "'head'"),
        ("block.0", "'blocks.0'"),
        ("type:LayerNrm", "'LayerNorm'"),
        ("type:head", "'Linear'"),
        ("HEAD", "'head'"),
    ],
)
def test_pattern_that_stands_for_nothing_is_refused_naming_the_nearest_layers(pattern: str, nearest: str) -> None:
    with pytest.raises(RecipeError) as error:
        matching(layers_of(Body()), [pattern], where="stages[0].quantize.layers", refusal=RecipeError)
    assert nearest in error.value.problem
    assert error.value.where == "stages[0].quantize.layers"


def test_layer_that_an_earlier_stage_removed_is_still_known_by_the_original() -> None:
    model = from_module(Body(), [TensorSpec(name="x", shape=(4,))])
    smaller = Body()
    del smaller.blocks[1]
    found = matching_in((model.reference, smaller), ["blocks.1"], where="layers")
    assert found == {"blocks.1": ("blocks.1",)}
    with pytest.raises(StageError, match=r"no module 'blocks\.2'"):
        matching_in((model.reference, smaller), ["blocks.2"], where="layers")
