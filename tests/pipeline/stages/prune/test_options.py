"""Every option of the stage in a run, in pairs: each value of each option meets each value of every other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.execution.apply import run
from pipeline.models.load import load
from pipeline.models.structure import restore_module
from pipeline.recipe import parse_recipe
from pipeline.stages.prune.coupling import PRUNABLE
from pipeline.stages.prune.sparsity import zero_ratio
from tests.pipeline.conftest import quadrants
from tests.pipeline.pairs import Options, pairwise

NETWORK = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.wide, self.back = nn.Conv2d(width, 32, 3, padding=1), nn.Conv2d(32, width, 1)
        self.norm = nn.BatchNorm2d(32)

    def forward(self, x):
        return x + self.back(self.norm(self.wide(x)).relu())


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.Sequential(Block(16), Block(16))
        self.gate, self.head = nn.Conv2d(16, 32, 1), nn.Linear(16, 4)

    def forward(self, x):
        first, second = self.gate(self.blocks(self.stem(x).relu())).chunk(2, 1)
        return self.head((first * second.sigmoid()).mean((2, 3)))
"""

OPTIONS: Options = {
    "budget": (
        {"macs_ratio": 0.7}, {"parameters_ratio": 0.7}, {"size_ratio": 0.7}, {"max_macs": 130_000},
        {"max_parameters": 8_000}, {"max_size_bytes": 32_000},
    ),
    "importance": tuple({"importance": kind} for kind in ("l1", "l2", "bn_scale", "taylor", "activation")),
    "allocation": ({"allocation": "importance"}, {"allocation": "sensitivity"}),
    "round_to": ({"round_to": 1}, {"round_to": 2}),
    "max_layer_ratio": ({"max_layer_ratio": 0.6}, {"max_layer_ratio": 0.9}),
    "blocks": ({}, {"blocks_ratio": 0.5}),
    "sparsity": ({}, {"sparsity": {"ratio": 0.5}}, {"sparsity": {"pattern": [2, 4]}}),
    "rounds": ({}, {"recover": {"epochs": 1}}, {"recover": {"epochs": 1}, "iterations": 2}),
    "skip": ({}, {"skip": ["gate"]}),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    (folder / "options_network.py").write_text(NETWORK)
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    exec(NETWORK, namespace)
    save_file(namespace["Network"]().state_dict(), folder / "model.safetensors")
    for name, count, seed in (("train", 64, 1), ("test", 32, 2)):
        np.savez_compressed(folder / f"{name}.npz", **quadrants(count, seed))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("options", list(pairwise(OPTIONS)), ids=str)
def test_run_prunes_as_the_recipe_asks_when_options_meet(
    options: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    recipe = parse_recipe(
        {
            "name": "options",
            "model": {
                "factory": "options_network:Network",
                "checkpoint": "model.safetensors",
                "inputs": [{"name": "image", "shape": [1, 8, 8]}],
            },
            "data": {
                "preprocessing": {"scale": 1 / 255},
                "train": {"npz": "train.npz"},
                "calibration": {"npz": "train.npz", "limit": 16},
                "evaluation": {"npz": "test.npz"},
            },
            "stages": [{"prune": options}],
            "targets": [],
            "budget": {"metric": "agreement", "max_drop": 1.0},
        }
    )
    (stage,) = run(recipe, tmp_path / "out", root=folder, store=tmp_path / "store").stages
    details = stage.details
    assert all(budget["reached"] <= budget["asked"] for budget in details["budgets"].values())
    widths = {layer["layer"]: (layer["before"], layer["after"]) for layer in details["layers"]}
    assert all(after % options["round_to"] == 0 for before, after in widths.values() if after != before)
    assert all(
        after == 0 or after >= before * (1 - options["max_layer_ratio"]) - 1e-9 for before, after in widths.values()
    )
    assert len(details.get("rounds", ())) == (options.get("iterations", 1) if "recover" in options else 0)
    assert [block["removed"] for block in details["blocks"]].count(True) == ("blocks_ratio" in options)
    if "skip" in options:
        assert widths["gate"] == (32, 32)
    assert bool(details["sensitivity"]) == (options["allocation"] == "sensitivity")
    (saved,) = (tmp_path / "store").rglob("module.safetensors")
    module = restore_module(load(recipe.model, root=folder).module, saved)
    dense = {entry.layer for entry in stage.skipped if "cannot be cut into groups" in entry.reason}
    for name, layer in module.named_modules():
        if "sparsity" in options and isinstance(layer, PRUNABLE) and name not in {*dense, *options.get("skip", ())}:
            assert zero_ratio(layer) >= 0.49
