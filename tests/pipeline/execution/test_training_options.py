"""Every option of distillation and of quantization-aware training in a run, in pairs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.execution.apply import run
from tests.pipeline.execution.tiny import MODULE, tiny_recipe
from tests.pipeline.pairs import Options, pairwise

TRAINED_ON = 56
"""Samples that are left of 64 when some are held out to choose by."""

AUGMENTATIONS: tuple[dict[str, Any], ...] = (
    {},
    {"horizontal_flip": True, "shift": 1},
    {"rotation": 20, "color_jitter": 0.3, "erasing": 0.5},
    {"mixup": 1.0},
    {"cutmix": 0.6, "mixup": 0.3, "rotation": 180},
)
TRAINING: Options = {
    "epochs": ({"epochs": 1}, {"epochs": 2}),
    "batch_size": ({"batch_size": 16}, {"batch_size": 1000}, {"batch_size": 13}),
    "optimizer": ({}, {"optimizer": "adamw", "learning_rate": 0.001}, {"learning_rate": 0.2}),
    "momentum": ({}, {"momentum": 0.01}, {"momentum": 0.999}),
    "weight_decay": ({"weight_decay": 0}, {"weight_decay": 0.1}),
    "warmup_ratio": ({"warmup_ratio": 0}, {"warmup_ratio": 0.99}),
    "max_grad_norm": ({"max_grad_norm": None}, {"max_grad_norm": 0.1}),
    "ema": ({}, {"ema": 0.5}),
    "early_stop": ({}, {"early_stop": 1}),
    "precision": ({}, {"precision": "bf16"}),
    "checkpoint_minutes": ({}, {"checkpoint_minutes": 0}),
    "augment": tuple({"augment": augment} for augment in AUGMENTATIONS),
    "temperature": ({"temperature": 1.0}, {"temperature": 20}),
    "alpha": ({"alpha": 0.5}, {"alpha": 1}, {"alpha": 0}),
    "labels": ({}, {"labels": None}),
}  # fmt: skip
DISTILL: Options = TRAINING | {
    "features": (
        {}, {"features": {}}, {"features": {"kind": "hint", "weight": 0.1}},
        {"features": {"layers": {"back": "norm"}}},
    ),
    "relations": ({}, {"relations": {}}, {"relations": {"distance": 0, "angle": 0}}),
    "student": (
        {}, {"student": {"factory": f"{MODULE}:student"}},
        {"student": {"factory": f"{MODULE}:student", "checkpoint": "student.safetensors"}},
    ),
}  # fmt: skip
QAT: Options = TRAINING | {"freeze_ratio": ({"freeze_ratio": 0}, {"freeze_ratio": 0.5}, {"freeze_ratio": 1})}


def valid(options: dict[str, Any]) -> dict[str, Any]:
    """The options without what a recipe refuses, and tests of recipes cover."""
    options = dict(options)
    if options["alpha"] == 0 and options["augment"].keys() & {"mixup", "cutmix"}:
        options["alpha"] = 0.5
    if "student" in options and "features" in options:  # no layers have the same name
        options["features"] = {**options["features"], "layers": {"1": "norm"}}
    return options


def check_training(epochs: list[dict[str, Any]], options: dict[str, Any], out: Path) -> None:
    """The epochs and steps are those that were asked for."""
    assert len(epochs) == options["epochs"] or (len(epochs) == 1 and "early_stop" in options)
    for epoch in epochs:
        assert math.isfinite(epoch["loss"])
        assert 0 <= epoch["metric"] <= 1
    steps = max(1, TRAINED_ON // options["batch_size"])
    assert len((out / "training_1.csv").read_text().splitlines()) == 1 + len(epochs) * (steps + 1)


@pytest.mark.slow
@pytest.mark.parametrize("options", list(pairwise(DISTILL)), ids=str)
def test_run_distills_as_the_recipe_asks_when_options_meet(options: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    options = valid(options)
    labels = options.pop("labels", "labels")
    recipe = tiny_recipe(stages=[{"distill": options}], labels=labels)
    report = run(recipe, tmp_path / "out", root=tiny, store=tmp_path / "store")
    (stage,) = report.stages
    check_training(stage.details["epochs"], options, tmp_path / "out")
    assert bool(stage.details["feature_layers"]) == ("features" in options)
    if "student" in options:
        assert stage.parameters < report.original.parameters


@pytest.mark.slow
@pytest.mark.parametrize("options", list(pairwise(QAT)), ids=str)
def test_run_trains_the_program_as_the_recipe_asks_when_options_meet(
    options: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    options = valid(options)
    labels = options.pop("labels", "labels")
    recipe = tiny_recipe(stages=[{"quantize": {"observers": ["minmax"], "qat": options}}], labels=labels)
    (stage,) = run(recipe, tmp_path / "out", root=tiny, store=tmp_path / "store").stages
    trained = stage.details["qat"]
    check_training(trained["epochs"], options, tmp_path / "out")
    assert trained["kept"] == (trained["metric"] >= trained["post_training"])
    assert stage.details["held_out"]["int8"] == max(trained["metric"], trained["post_training"])
    assert stage.details["held_out"]["sqnr_db"] > 10
