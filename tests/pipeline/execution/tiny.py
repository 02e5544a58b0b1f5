"""A project so small that a run of it takes a second: for runs by the dozen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from pipeline.recipe import Recipe, parse_recipe
from tests.pipeline.conftest import quadrants

NETWORK = """
from torch import nn


class Network(nn.Module):
    def __init__(self, width=8, offset=0.0):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)
        self.back = nn.Conv2d(width, width, 1)
        self.tokens, self.head = nn.LayerNorm(width), nn.Linear(width, 4)
        self.offset = offset

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.back(x)
        return self.head(self.tokens(x.mean((2, 3)))) + self.offset


def student(width=4):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4),
    )
"""
MODULE = "tiny_network"


def write_tiny(folder: Path) -> None:
    """Write the network, a student, weights of both, and data with and without labels into a folder."""
    (folder / f"{MODULE}.py").write_text(NETWORK)
    namespace: dict[str, Any] = {}
    exec(NETWORK, namespace)  # the file itself is imported by the run
    torch.manual_seed(0)
    network = namespace["Network"]().eval()
    images = torch.from_numpy(quadrants(64, seed=1)["images"])[:, None] / 255
    with torch.no_grad():
        network.head.bias -= network(images).mean(0)  # so that samples differ in their class
    save_file(network.state_dict(), folder / "model.safetensors")
    save_file(namespace["student"]().state_dict(), folder / "student.safetensors")
    for name, count, seed in (("train", 64, 1), ("test", 32, 2)):
        np.savez_compressed(folder / f"{name}.npz", **quadrants(count, seed))


def tiny_recipe(
    *,
    stages: list[Any],
    targets: Sequence[Any] = (),
    offset: float = 0.0,
    labels: str | None = "labels",
    without: Sequence[str] = (),
    **changes: Any,
) -> Recipe:
    """A recipe for it.

    Args:
        offset: What is added to the logits: where it is large, integers cannot tell them apart.
        labels: The array of labels of all three sets; None for sets without.
        without: Sets that are left out.
        changes: Other keys of the recipe.
    """
    sets: dict[str, dict[str, Any]] = {
        "train": {"npz": "train.npz", "labels": labels},
        "calibration": {"npz": "train.npz", "limit": 16, "labels": labels},
        "evaluation": {"npz": "test.npz", "labels": labels},
    }
    return parse_recipe(
        {
            "name": "tiny",
            "model": {
                "factory": f"{MODULE}:Network",
                "kwargs": {"offset": offset},
                "checkpoint": "model.safetensors",
                "inputs": [{"name": "image", "shape": [1, 8, 8]}],
                "classes": ["a", "b", "c", "d"],
                "expect": {},  # it is not trained
            },
            "data": {
                "preprocessing": {"scale": 1 / 255},
                **{role: samples for role, samples in sets.items() if role not in without},
            },
            "stages": stages,
            "targets": list(targets),
            "budget": {"metric": "agreement", "max_drop": 1.0},
            **changes,
        }
    )
