"""Every option of quantization in a run, in pairs; those of its training are in ``test_training_options.py``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.execution.apply import run
from tests.pipeline.execution.tiny import tiny_recipe
from tests.pipeline.pairs import Options, pairwise

OBSERVERS = ("minmax", "moving_average", "percentile", "mse", "entropy", "output_mse")
OPTIONS: Options = {
    "observers": (*({"observers": [name]} for name in OBSERVERS), {"observers": list(OBSERVERS)}),
    "bias_correction": ({}, {"bias_correction": False}),
    "equalisation": ({}, {"equalisation": False}),
    "smoothquant": ({}, {"smoothquant": False}),
    "batch_norm": ({}, {"batch_norm": True}),
    "adaround": ({}, {"adaround": True}),
    "mixed_precision": ({}, {"mixed_precision": False}),
    "sensitivity": ({}, {"sensitivity": True, "sensitivity_samples": 3}, {"sensitivity": True}),
    "qat": ({}, {"qat": {"epochs": 1}}),
    "batch_size": ({"batch_size": 1}, {"batch_size": 7}, {"batch_size": 1000}),
    "skip": ({}, {"skip": ["head"]}, {"skip": ["stem", "norm", "tokens"]}),
    "layers": ({}, {"layers": {"tok*": "float", "type:LayerNorm": "float"}}),
    "budget": (
        {"budget": {"metric": "agreement", "max_drop": 1.0}}, {"budget": {"metric": "agreement", "max_drop": 0.0}},
        {"budget": {"metric": "top1", "max_drop": 0.0}},
    ),
    "offset": ({"offset": 0.0}, {"offset": 30.0}),
    "data": ({}, {"train": False}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("options", list(pairwise(OPTIONS)), ids=str)
def test_run_quantizes_as_the_recipe_asks_when_options_meet(
    options: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    config = dict(options)
    outer = {key: config.pop(key) for key in ("budget", "offset")}
    without = [] if config.pop("train", True) or "qat" in config else ["train"]
    recipe = tiny_recipe(stages=[{"quantize": config}], without=without, **outer)
    (stage,) = run(recipe, tmp_path / "out", root=tiny, store=tmp_path / "store").stages
    details = stage.details
    corrections = {"none"} if "bias_correction" in config else {"empirical", "analytic"}
    plain = [trial for trial in details["trials"] if not trial["float_layers"] and not trial["equalised"]]
    tried = {(trial["method"], trial["bias_correction"]) for trial in plain if not trial["adaround"]}
    assert tried == {(method, correction) for method in config["observers"] for correction in corrections}
    assert any(trial["adaround"] for trial in details["trials"]) == ("adaround" in config)
    chosen = details["chosen"]
    assert chosen in details["trials"]
    assert chosen["within_budget"] == any(trial["within_budget"] for trial in details["trials"])
    assert details["held_out"]["metric"] == outer["budget"]["metric"]
    assert math.isfinite(details["held_out"]["sqnr_db"])
    whole = [trial for trial in details["trials"] if not trial["float_layers"]]
    short = "mixed_precision" not in config and not any(trial["within_budget"] for trial in whole)
    assert bool(details["sensitivities"]) == ("sensitivity" in config or short)
    assert any(trial["float_layers"] for trial in details["trials"]) == short
    assert (details["batch_norm"] is not None) == ("batch_norm" in config)
    assert (details["qat"] is not None) == ("qat" in config)
    skipped = {entry.layer: entry.reason for entry in stage.skipped}
    for name in {"head", "stem"} & set(config.get("skip", ())):
        assert "recipe" in skipped[name]
    assert set(skipped) >= set(chosen["float_layers"])
