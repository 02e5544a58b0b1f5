"""Options per layer: what the configuration names stays in float, and the record says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pipeline import from_dataset, from_module
from pipeline.core import Model, StageError, TensorSpec
from pipeline.recipe import Budget, PruneConfig, QuantizeConfig
from pipeline.stages.prune import prune
from pipeline.stages.quantize import quantize

ASKED = "left in float by the recipe"
IMAGE = TensorSpec(name="image", shape=(1, 8, 8))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.stem(image)).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return from_module(Network(), [IMAGE])


def quantized(model: Model, **config: Any) -> Model:
    samples = from_dataset(torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)), (IMAGE,))
    return quantize(
        model, QuantizeConfig(observers=("minmax",), **config), samples, budget=Budget(metric="agreement", max_drop=1.0)
    )


def in_float(model: Model) -> set[str]:
    return {entry.layer for entry in model.history[-1].skipped if entry.reason == ASKED}


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        ({"head.*": float}, {"head.0", "head.1", "head.2", "head.3"}),
        ({"type:Linear": "float"}, {"head.1", "head.3"}),
        ({"stem": "float", "type:LayerNorm": "float"}, {"stem", "head.0"}),
    ],
    ids=["pattern", "type", "both"],
)
def test_layers_that_are_named_stay_in_float_and_all_others_do_not(
    model: Model, layers: dict[str, Any], kept: set[str]
) -> None:
    result = quantized(model, layers=layers)
    assert in_float(result) == kept
    integers = {"stem", "head.1", "head.3"} - kept
    weights = [node for node in result.module.graph.nodes if "dequantize_per_channel" in str(node.target)]
    assert len(weights) == len(integers)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(result.module(x), model.module(x), rtol=0.1, atol=0.05)


def test_skip_takes_the_same_patterns(model: Model) -> None:
    assert in_float(quantized(model, skip=("head.?",))) == in_float(quantized(model, layers={"head.?": "float"}))


def test_layer_that_is_computed_inside_another_is_refused_naming_what_to_write(model: Model) -> None:
    with pytest.raises(StageError, match=r"'type:BatchNorm2d' stands for norm, which .* inside other layers") as error:
        quantized(model, layers={"type:BatchNorm2d": "float"})
    assert error.value.where == "quantize: layers"


def test_layer_that_is_computed_inside_another_is_listed_beside_those_that_stay_in_float(model: Model) -> None:
    result = quantized(model, layers={"type:BatchNorm2d": "float", "stem": "float"})
    reasons = {entry.layer: entry.reason for entry in result.history[-1].skipped}
    assert reasons["stem"] == ASKED
    assert "inside other layers" in reasons["norm"]


@pytest.mark.parametrize("key", ["skip", "layers"])
def test_unknown_layer_is_refused_naming_the_nearest_in_the_library_too(model: Model, key: str) -> None:
    with pytest.raises(StageError, match=r"no layer's name matches 'heads\.\*'; the nearest are 'head'"):
        quantized(model, **{key: ("heads.*",) if key == "skip" else {"heads.*": "float"}})


@pytest.mark.parametrize("how", ["int8", "int4", 8, int])
def test_layers_are_held_as_float_or_not_named(how: Any) -> None:
    with pytest.raises(ValueError, match="float is the only choice"):
        QuantizeConfig(layers={"head": how})


def test_prune_skips_by_the_same_patterns(model: Model) -> None:
    result = prune(model, PruneConfig(parameters_ratio=0.9, skip=("type:Conv2d",), round_to=1))
    widths = {name: part.weight.shape[0] for name, part in result.module.named_modules() if hasattr(part, "weight")}
    assert (widths["stem"], widths["norm"]) == (8, 8)
    assert widths["head.1"] < 8
    assert result.history[-1].config["skip"] == ["type:Conv2d"]
    with pytest.raises(StageError, match="no layer of the 'type Conv3d'; the nearest are 'Conv2d'"):
        prune(model, PruneConfig(parameters_ratio=0.9, skip=("type:Conv3d",)))
