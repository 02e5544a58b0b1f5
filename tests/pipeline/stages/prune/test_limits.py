import sys

import pytest
import torch
from torch import nn

import targets
from calibration_data.fashion_mnist.network import resnet
from pipeline.core import Model, RecipeError, StageError, TensorSpec
from pipeline.models.capture import count_macs
from pipeline.models.load import from_module
from pipeline.recipe import PruneConfig, parse_recipe
from pipeline.stages.prune import prune
from pipeline.stages.prune.limits import cost_limits, size_bytes
from tests.networks.structures import IMAGE, build


def model() -> Model:
    return from_module(build("residual"), (IMAGE,))


def test_size_bytes_counts_weights_and_buffers_when_dtypes_differ() -> None:
    module = nn.Linear(3, 2)  # 8 floats
    module.register_buffer("steps", torch.zeros(5, dtype=torch.int64))
    assert size_bytes(module) == 8 * 4 + 5 * 8


def test_limits_take_the_tighter_of_a_ratio_and_a_limit_when_both_are_given() -> None:
    whole = model()
    macs = count_macs(whole.module, whole.inputs)
    (limit,) = cost_limits(whole, PruneConfig(macs_ratio=0.5, max_macs=macs // 4))
    assert limit.share == macs // 4 / macs
    assert limit.kept(whole.module) == 1.0


@pytest.mark.parametrize(
    ("config", "message"),
    [({}, "give a budget, such as macs_ratio"), ({"latency_ratio": 0.5}, "say where latency is measured")],
    ids=["none", "latency without a target"],
)
def test_recipe_is_refused_when_its_budget_is(config: dict[str, float], message: str) -> None:
    recipe = {
        "name": "x",
        "model": {"checkpoint": "m.pt2"},
        "data": {"evaluation": {"npz": "t.npz"}},
        "stages": [{"prune": config}],
    }
    with pytest.raises(RecipeError, match=message):
        parse_recipe(recipe)


def test_prune_refuses_a_latency_budget_when_its_target_is_not_given() -> None:
    config = PruneConfig(latency_ratio=0.5, latency_target="onnx")
    with pytest.raises(StageError, match="the latency budget needs target 'onnx'"):
        prune(model(), config)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS runs Core ML itself")
def test_prune_refuses_a_latency_budget_when_only_a_reference_runs_the_target_here() -> None:
    config = PruneConfig(latency_ratio=0.5, latency_target="coreml")
    with pytest.raises(StageError, match="latency cannot be measured: "):
        prune(model(), config, target=targets.get("coreml"))


@pytest.mark.slow
def test_prune_meets_a_latency_budget_measured_in_onnxruntime() -> None:
    torch.manual_seed(0)
    before = from_module(resnet(), (TensorSpec(name="image", shape=(1, 28, 28)),))
    config = PruneConfig(latency_ratio=0.5, latency_target="onnx", round_to=16)
    record = prune(before, config, target=targets.get("onnx")).history[-1]
    budget = record.details["budgets"]["latency"]
    assert budget["asked"] == 0.5
    assert 0 < record.macs < 0.6 * count_macs(before.module, before.inputs)
    assert budget["reached"] < 0.6  # timed once more after the choice, so it carries the machine's noise
