"""Folders of transformers through the door: a recipe of three lines is checked, and run, as any other."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core import DataError, RecipeError
from pipeline.execution.apply import run
from pipeline.execution.prepare import Prepared, check
from pipeline.recipe import Recipe, parse_recipe
from pipeline.search.trials import judged_on_training_data
from tests.networks import families


def recipe(source: dict[str, Any], **more: Any) -> Recipe:
    data = {"calibration": source, "evaluation": source, **more.pop("data", {})}
    return parse_recipe({"name": "family", "model": {"huggingface": "model"}, "data": data, **more})


def write_texts(folder: Path, column: str = "text", rows: int = 16) -> None:
    with (folder / "texts.csv").open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow([column, "label"])
        labels = ("negative", "positive")
        writer.writerows([text, labels[index % 2]] for index, text in enumerate(families.texts(rows)))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    families.save("distilbert", tmp_path / "model")
    write_texts(tmp_path)
    return tmp_path


def test_a_trial_of_a_search_reads_texts_by_the_folders_tokenizer(texts: Path) -> None:
    source = {"table": "texts.csv"}
    stages, data = [{"quantize": {}}], {"train": source}
    trial = judged_on_training_data(recipe(source, stages=stages, targets=["onnx"], data=data))
    prepared = check(trial, texts)
    assert prepared.train is not None
    assert not set(prepared.train.indices) & set(prepared.evaluation.indices)


@pytest.mark.slow
def test_a_folder_and_a_table_of_texts_are_all_that_a_run_needs(texts: Path) -> None:
    steps = {"stages": [{"quantize": {"observers": ["minmax"]}}], "targets": ["onnx"], "budget": {"max_drop": 1.0}}
    report = run(recipe({"table": "texts.csv"}, **steps), texts / "out", root=texts)
    assert report.task is not None
    assert report.task.name == "classification"
    assert report.run.recipe["model"]["classes"] == ["negative", "positive"]
    assert [(target.target, target.status) for target in report.targets] == [("onnx", "ok")]
    assert report.targets[0].verified is not None
    assert any("takes input_ids ['N', 16]" in note for note in report.targets[0].notes)


def _image_check(folder: Path, name: str, **more: Any) -> Prepared:
    families.save(name, folder / "model")
    np.savez(folder / "set.npz", images=families.images(9, 40, 50), labels=np.arange(9) % 3)
    return check(recipe({"npz": "set.npz"}, **more), folder)


def test_images_are_prepared_as_the_folder_says_unless_the_recipe_does(tmp_path: Path) -> None:
    prepared = _image_check(tmp_path, "resnet")
    (images,) = prepared.model.examples
    assert images.shape == (8, 3, 32, 32)
    assert float(images.min()) >= -2  # (0 - 0.5) / 0.25
    assert float(images.max()) <= 2
    assert prepared.task.name == "classification"
    prepared = _image_check(tmp_path, "resnet", data={"preprocessing": {"resize": [32, 32], "scale": 0.5}})
    assert float(prepared.model.examples[0].max()) > 100


def test_size_of_the_recipe_replaces_that_of_the_folder(tmp_path: Path) -> None:
    model = {"huggingface": "model", "inputs": [{"name": "pixel_values", "shape": [3, 48, 48]}]}
    prepared = _image_check(tmp_path, "resnet", model=model)
    assert prepared.model.preprocessing.resize == (54, 54)
    assert prepared.model.examples[0].shape == (8, 3, 48, 48)


@pytest.mark.parametrize(
    ("name", "labels", "task"),
    [
        ("segformer", {"labels": np.ones((9, 40, 50), np.uint8)}, "segmentation"),
        (
            "yolos",
            {"boxes": np.tile([[4.0, 4, 20, 30]], (9, 1)), "kinds": np.zeros(9, int), "from": np.arange(10)},
            "detection",
        ),
    ],
)
def test_task_and_classes_come_from_the_folder(name: str, labels: dict[str, Any], task: str, tmp_path: Path) -> None:
    families.save(name, tmp_path / "model")
    np.savez(tmp_path / "set.npz", images=families.images(9, 40, 50), **labels)
    parts = {"boxes": "boxes", "labels": "kinds", "offsets": "from"}
    source = {"npz": "set.npz"} | ({} if "labels" in labels else {"labels": parts})
    prepared = check(recipe(source), tmp_path)
    assert prepared.task.name == task


def test_texts_may_have_an_open_length(texts: Path) -> None:
    names = ("input_ids", "attention_mask")
    inputs = [{"name": name, "shape": ["tokens<=12"], "dtype": "int64"} for name in names]
    prepared = check(recipe({"table": "texts.csv"}, model={"huggingface": "model", "inputs": inputs}), texts)
    assert prepared.model.dynamic == {"input_ids": (1,), "attention_mask": (1,)}
    assert prepared.model.examples[0].shape == (8, 12)


def test_column_of_another_name_or_of_no_texts_is_refused(texts: Path) -> None:
    write_texts(texts, column="review")
    with pytest.raises(DataError, match="has no column 'text'; there are review, label"):
        check(recipe({"table": "texts.csv"}), texts)
    assert check(recipe({"table": "texts.csv", "inputs": ["review"]}), texts).model.examples[0].shape == (8, 16)
    (texts / "set.jsonl").write_text('{"text": [1, 2]}\n{"text": "good"}\n')
    with pytest.raises(DataError, match=r"line 1: text: \[1, 2\] is no text"):
        check(recipe({"table": "set.jsonl"}), texts)


def test_huggingface_beside_another_model_is_refused() -> None:
    for key, value in (("checkpoint", "a.pt"), ("factory", "a:b"), ("trust", True), ("kwargs", {"a": 1})):
        with pytest.raises(RecipeError, match=f"huggingface names the network and its weights: remove {key}"):
            recipe({"npz": "a.npz"}, model={"huggingface": "model", key: value})
