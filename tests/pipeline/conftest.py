"""A small project of a user's: a network, its checkpoint, data and a recipe, in an empty folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

NETWORK = """
from torch import nn


def convnet(classes=4, width=16):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes),
    )
"""


@dataclass
class Project:
    """The folder, and the recipe as a mapping that a test may change before it writes it."""

    folder: Path
    recipe: dict[str, Any]

    def write(self) -> Path:
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(self.recipe))
        return path


def quadrants(count: int, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Noise images ``(N, 8, 8) uint8`` with one bright quadrant, which is the label: learnt in a few steps."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 120, (count, 8, 8), dtype=np.uint8)
    labels = rng.integers(0, 4, count)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 100
    return {"images": images, "labels": labels}


def make_project(folder: Path) -> Project:
    """Write the network, its weights, the data and a recipe of every stage into a folder."""
    module = f"network_{folder.name}".replace("-", "_")  # modules stay imported, so every test has its own
    (folder / f"{module}.py").write_text(NETWORK)
    namespace: dict[str, Any] = {}
    exec(NETWORK, namespace)  # the file itself is imported by the run
    network = namespace["convnet"]()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter, generator=generator)
    save_file(network.state_dict(), folder / "model.safetensors")
    for name, count, seed in (("train", 512, 1), ("test", 256, 2)):
        np.savez_compressed(folder / f"{name}.npz", **quadrants(count, seed))
    recipe = {
        "name": "quadrants",
        "model": {
            "factory": f"{module}:convnet",
            "checkpoint": "model.safetensors",
            "inputs": [{"name": "image", "shape": [1, 8, 8]}],
            "expect": {},  # it is not trained
        },
        "data": {
            "preprocessing": {"scale": 1 / 255},
            "train": {"npz": "train.npz"},
            "calibration": {"npz": "train.npz", "limit": 64},
            "evaluation": {"npz": "test.npz"},
        },
        "stages": [{"prune": {"macs_ratio": 0.6}}, {"distill": {"epochs": 1}}, {"quantize": {}}],
        "targets": [],
        "budget": {"metric": "agreement", "max_drop": 0.5},
    }
    return Project(folder, recipe)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.syspath_prepend(tmp_path)
    return make_project(tmp_path)
