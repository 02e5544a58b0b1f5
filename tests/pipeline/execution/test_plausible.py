"""Data, preprocessing and a model that do not fit together: what a run says of it, on the console and in its report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.cli.show import summary
from pipeline.core import Preprocessing, TensorSpec
from pipeline.data.open import from_dataset
from pipeline.data.samples import SampleSet
from pipeline.execution.apply import run
from pipeline.execution.plausible import doubtful_values, too_few
from pipeline.recipe import Budget, parse_recipe
from pipeline.tasks.lookup import built_in
from pipeline.tasks.task import Example
from tests.pipeline.execution.tiny import tiny_recipe

IMAGENET = {"scale": 1 / 255, "mean": (0.485,), "std": (0.229,)}
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (8, 1, 8, 8), dtype=np.uint8)
UNIT = PIXELS / np.float32(255)
STANDARD = (UNIT - np.float32(0.485)) / np.float32(0.229)


def warnings_of(images: Any, shape: tuple[int, ...] = (1, 8, 8), **preprocessing: Any) -> list[str]:
    rows = [(image,) for image in images]
    specs = (TensorSpec(name="image", shape=shape),)
    samples = from_dataset(rows, specs, preprocessing=Preprocessing(**preprocessing))
    return list(doubtful_values({"evaluation": samples}))


@pytest.mark.parametrize(
    ("images", "preprocessing", "expected"),
    [
        (STANDARD, IMAGENET, "looks normalised already"),
        (STANDARD * 1.2 + 0.3, {"mean": (0.5,), "std": (0.5,)}, "looks normalised already"),
        (2 * UNIT - 1, {"scale": 1 / 255}, "looks normalised already"),
        (UNIT, IMAGENET, "is divided by 255, and its values are small already"),
        ((PIXELS > 128).astype(np.uint8), {"scale": 1 / 255}, "is divided by 255"),
        (PIXELS >> 4, {"scale": 1 / 255}, "is divided by 255"),  # 12 bits, stored in 16, of which 8 are kept
        (UNIT, {"scale": 1 / 127.5, "mean": (1.0,)}, "is divided by 127.5"),
        (
            PIXELS,
            {"mean": (0.485,), "std": (0.229,)},
            "has values up to 255, and mean and std are those of values up to 1",
        ),
    ],
)
def test_values_for_which_the_preprocessing_is_not_meant_are_doubtful(
    images: Any, preprocessing: dict[str, Any], expected: str
) -> None:
    (warning,) = warnings_of(images, **preprocessing)
    assert warning.startswith(f"data.evaluation: image {expected}")
    assert "data.evaluation.preprocessing: {}" in warning


@pytest.mark.parametrize(
    ("images", "preprocessing"),
    [
        (PIXELS, IMAGENET),
        (PIXELS // 4, IMAGENET),
        (UNIT, {"mean": (0.485,), "std": (0.229,)}),
        (STANDARD, {}),
        (STANDARD, {"resize": (8, 8)}),
        (PIXELS, {"mean": (123.7,), "std": (58.4,)}),
        (PIXELS, {"scale": 1 / 127.5, "mean": (1.0,)}),
        (np.zeros((4, 1, 8, 8), np.uint8), IMAGENET),
    ],
)
def test_values_for_which_the_preprocessing_is_meant_are_not_doubtful(
    images: Any, preprocessing: dict[str, Any]
) -> None:
    assert warnings_of(images, **preprocessing) == []


def test_numbers_that_are_no_image_may_be_negative() -> None:
    heights = RANDOM.normal(40, 90, (50, 3)).astype(np.float32)
    assert warnings_of(heights, (3,), mean=(40.0,), std=(90.0,)) == []
    assert len(warnings_of((heights - 40) / 90, (3,), mean=(40.0,), std=(90.0,))) == 1


def test_a_set_may_have_its_own_preprocessing(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = np.load(tiny / "test.npz")
    ready = tmp_path / "ready.npz"
    np.savez(ready, images=stored["images"][:, None].astype(np.float32) / 255, labels=stored["labels"])
    usual = run(tiny_recipe(stages=[]), tmp_path / "usual", root=tiny)
    twice = run(_evaluated_on({"npz": str(ready)}), tmp_path / "twice", root=tiny)
    assert len(twice.warnings) == 1
    assert twice.warnings[0] in capsys.readouterr().err
    assert "is divided by 255" in (tmp_path / "twice/report.html").read_text()
    assert summary(twice).startswith(f"warning: {twice.warnings[0]}\n")
    once = run(_evaluated_on({"npz": str(ready), "preprocessing": {}}), tmp_path / "once", root=tiny)
    assert once.warnings == usual.warnings == ()
    assert once.original.metrics == usual.original.metrics != twice.original.metrics


def _evaluated_on(source: dict[str, Any]) -> Any:
    data = {"preprocessing": {"scale": 1 / 255}, "train": {"npz": "train.npz"}, "evaluation": source}
    return tiny_recipe(stages=[], data=data)


def test_synthetic_calibration_is_said_in_the_first_line(tiny: Path, tmp_path: Path) -> None:
    data = {
        "preprocessing": {"scale": 1 / 255},
        "calibration": {"synthetic": True, "limit": 32},
        "evaluation": {"npz": "test.npz"},
    }
    report = run(tiny_recipe(stages=[{"quantize": {}}], data=data), tmp_path / "out", root=tiny)
    first = "No real sample was seen in calibration: 28 synthetic inputs"
    assert report.warnings[0].startswith(first.replace("28", "32"))
    assert summary(report).startswith("warning: No real sample was seen")
    page = (tmp_path / "out/report.html").read_text()
    assert page.index("No real sample was seen") < page.index('class="verdict')
    assert report.data["calibration"].samples == 28  # of 32, one of eight is held out
    assert report.stages[0].metrics["agreement"] > 0.8
    assert parse_recipe({**report.run.recipe, "data": {**data, "calibration": "synthetic"}}).data.calibration.synthetic  # type: ignore[union-attr]


def set_of(count: int, name: str) -> SampleSet:
    return replace(from_dataset([(np.zeros(2), 0)] * count, (TensorSpec(name="x", shape=(2,)),)), name=name)


def test_too_few_samples_to_tell_are_named_with_how_many_would() -> None:
    """Tango's interval without a change reaches to z² / (n + z²), with z = 1.96: 3.8415 / 380.3 = 1.01 % for 376.5."""
    task = built_in("classification", Example(inputs=(), outputs=(torch.zeros(2, 3),)))
    few, enough = set_of(100, "evaluation"), set_of(381, "calibration (held out)")
    (warning,) = too_few(task, (Budget(metric="top1"),), evaluation=few, held_out=enough)
    assert warning == (
        "evaluation has 100 samples that the result is judged by: even if no answer changes, Top-1 accuracy is known "
        "to 3.7 points, and the budget is 1. About 381 would tell"
    )
    (warning,) = too_few(task, (Budget(metric="top1", max_drop=0.1),), evaluation=enough, held_out=set_of(12, "train"))
    assert "train has 12 samples that stages choose by" in warning
    assert "About 35 would tell, which are 8 times as many in data.train" in warning
    values = built_in("regression", Example(inputs=(), outputs=(torch.zeros(2, 3),)))
    (warning,) = too_few(values, (Budget(metric="mae"),), evaluation=set_of(20, "evaluation"), held_out=None)
    assert "data.evaluation has 20 samples, which says little about" in warning
