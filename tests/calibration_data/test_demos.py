"""The embedded demos: their files are those that their manifests and cards describe, and their scripts make them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import calibration_data
from calibration_data.denoise.pack import pairs
from calibration_data.detection.train import assigned, overlaps
from calibration_data.keyword.speak import features, utterances
from calibration_data.scenes.compose import compose_all
from calibration_data.training import scores
from pipeline.cli.demo import Demo, recipe_of
from pipeline.cli.demo import demo as list_demos
from pipeline.execution.apply import run
from pipeline.execution.prepare import check
from pipeline.recipe import parse_recipe, read_recipe

HERE = Path(calibration_data.__file__).parent
DATA = ("scenes", "denoise", "keyword")
MODELS = {"detection": "detection", "segmentation": "segmentation", "denoise": "image", "keyword": "classification"}
"""Folders with a model, and their tasks."""


def stored(folder: str, split: str) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(HERE / folder / f"{split}.npz") as archive:
        return {name: archive[name] for name in archive.files}


def assert_rows(found: dict[str, np.ndarray[Any, Any]], kept: dict[str, np.ndarray[Any, Any]], rows: list[int]) -> None:
    for name, values in found.items():
        np.testing.assert_array_equal(values, kept[name][rows], err_msg=name)


@pytest.mark.parametrize("folder", DATA)
@pytest.mark.parametrize("split", ["train", "test"])
def test_manifest_describes_the_committed_file_when_it_is_read(folder: str, split: str) -> None:
    manifest = json.loads((HERE / folder / "manifest.json").read_text())
    entry = manifest["files"][f"{split}.npz"]
    content = (HERE / folder / f"{split}.npz").read_bytes()
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (entry["sha256"], entry["size_bytes"])
    arrays = {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in stored(folder, split).items()}
    assert arrays == entry["arrays"]
    assert manifest["licence"]
    assert manifest["source"]


@pytest.mark.parametrize("folder", DATA)
def test_data_are_small_when_added_up(folder: str) -> None:
    assert sum(path.stat().st_size for path in (HERE / folder).glob("*.npz")) <= 6_000_000


@pytest.mark.parametrize("split", ["train", "test"])
def test_scenes_are_made_again_bit_for_bit_when_composed(split: str) -> None:
    rows, kept = [0, 7, 250], stored("scenes", split)
    made = compose_all(split, rows)
    assert_rows({"images": made.images, "masks": made.masks}, kept, rows)
    of_rows = np.concatenate([np.arange(kept["offsets"][row], kept["offsets"][row + 1]) for row in rows])
    assert_rows({"boxes": made.boxes, "classes": made.classes}, kept, of_rows.tolist())


def test_boxes_enclose_the_pixels_of_their_classes_when_compared_with_the_mask() -> None:
    kept = stored("scenes", "test")
    for row in range(40):
        part = slice(kept["offsets"][row], kept["offsets"][row + 1])
        covered = np.zeros((7, 96, 96), bool)
        for (x1, y1, x2, y2), kind in zip(kept["boxes"][part], kept["classes"][part], strict=True):
            covered[kind + 1, y1:y2, x1:x2] = True
        for kind in range(1, 6):
            assert (covered[kind] | (kept["masks"][row] != kind)).all()


def test_noisy_images_are_made_again_bit_for_bit_when_composed() -> None:
    assert_rows(pairs("test", [1000, 1007]), stored("denoise", "test"), [0, 7])


def test_features_of_a_tone_peak_in_the_band_of_its_frequency() -> None:
    time_s = np.arange(22_050) / 22_050
    found = features(np.sin(2 * np.pi * 1000 * time_s))
    assert found.shape == (40, 50)
    # 60 Hz is 92.7 mel, 8 kHz 2840.0, 1 kHz 1000.0: 13.5 of 41 steps, between the centres of bands 12 and 13
    assert set(found[:, 10:40].argmax(0)) <= {12, 13}


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_words_are_spoken_again_bit_for_bit_when_the_version_is_the_same() -> None:
    version = subprocess.run(["espeak-ng", "--version"], capture_output=True, text=True, check=True).stdout
    if "1.51" not in version:
        pytest.skip("another version speaks differently")
    assert_rows(utterances("test", [0, 11]), stored("keyword", "test"), [0, 11])


@pytest.mark.parametrize("folder", MODELS)
def test_model_card_names_the_committed_weights_when_they_are_hashed(folder: str) -> None:
    content = (HERE / folder / "model.safetensors").read_bytes()
    assert len(content) <= 500_000
    assert hashlib.sha256(content).hexdigest() in (HERE / folder / "MODEL_CARD.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("folder", MODELS)
def test_weights_reach_the_model_cards_figure_when_all_test_samples_are_predicted(folder: str) -> None:
    train = import_module(f"calibration_data.{folder}.train")
    found = scores(train.load_trained(), train.committed_samples("test"), MODELS[folder])
    card = (HERE / folder / "MODEL_CARD.md").read_text()
    stated = re.search(r"\| Accuracy \| ([\d.]+) (%|dB)", card)
    assert stated is not None
    figure = float(stated[1]) / (100 if stated[2] == "%" else 1)
    metric = {"detection": "map", "segmentation": "miou", "denoise": "psnr", "keyword": "top1"}[folder]
    assert found[metric] == pytest.approx(figure, abs=0.0005 if stated[2] == "%" else 0.02)


@pytest.mark.parametrize("demo", Demo)
def test_recipe_passes_the_check_when_nothing_is_changed(demo: Demo) -> None:
    recipe = recipe_of(demo)
    prepared = check(read_recipe(recipe), recipe.parent)
    assert prepared.budgets[0].metric == prepared.task.metrics[0].name


def test_demo_lists_every_recipe_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    list_demos(listed=True)
    printed = capsys.readouterr().out
    for each in Demo:
        assert f"{each} " in printed
        assert str(recipe_of(each)) in printed
        assert recipe_of(each).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("demo", [Demo.DETECTION, Demo.SEGMENTATION, Demo.KEYWORD, Demo.DENOISE])
def test_demo_delivers_an_artifact_when_it_is_cut_to_a_few_samples(demo: Demo, tmp_path: Path) -> None:
    path = recipe_of(demo)
    content = yaml.safe_load(path.read_text())
    for role, source in content["data"].items():
        if role != "preprocessing":
            source["limit"] = 32
    for step in content["stages"]:
        if "distill" in step:
            step["distill"] |= {"epochs": 1, "batch_size": 16}
        if "quantize" in step:
            step["quantize"] |= {"observers": ["minmax"], "mixed_precision": False}
    report = run(parse_recipe({**content, "targets": ["onnx"]}), tmp_path / "out", root=path.parent)
    assert report.targets[0].status == "ok", report.targets[0].reason
    assert report.stages[-1].macs < report.original.macs
    assert len(report.samples) == (0 if demo is Demo.KEYWORD else 6)


def test_places_around_a_boxs_centre_answer_for_it_when_it_has_their_scales_size() -> None:
    # 12 x 12 around (20, 30): of the finest scale, whose places are at 2, 6, 10, … and reach 6 pixels
    label = {"boxes": torch.tensor([[14.0, 24.0, 26.0, 36.0]]), "labels": torch.tensor([3])}
    boxes, kinds = assigned([label])
    rows, columns = np.divmod(np.flatnonzero(kinds[0].numpy() == 3), 24)
    # centres within (14, 26) and (24, 36): x in 18, 22 and y in 26, 30, 34; 14 and 26 lie on the edge
    assert sorted(set(columns * 4 + 2)) == [18, 22]
    assert sorted(set(rows * 4 + 2)) == [26, 30, 34]
    assert boxes[0, kinds[0] == 3].unique(dim=0).tolist() == [[14.0, 24.0, 26.0, 36.0]]


def test_generalised_overlap_is_negative_when_boxes_are_apart() -> None:
    overlap, generalised = overlaps(
        torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0]]),
        torch.tensor([[1.0, 0.0, 3.0, 2.0], [3.0, 0.0, 4.0, 1.0]]),
    )
    assert overlap.tolist() == pytest.approx([2 / 6, 0])
    assert generalised.tolist() == pytest.approx([2 / 6, -2 / 4])  # around them lie 4, of which they cover 2
