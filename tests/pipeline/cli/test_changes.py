"""``--set``, ``--stages`` and ``--targets``: the recipe that they make, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli.changes import Changes, read_changed
from pipeline.core import RecipeError
from pipeline.report.model import read_report
from tests.pipeline.cli.conftest import edgewright
from tests.pipeline.conftest import Project

WRITTEN: dict[str, Any] = {
    "name": "x",
    "model": {"factory": "net:net", "checkpoint": "net.pt", "inputs": [{"name": "image", "shape": [3, 8, 8]}]},
    "data": {"calibration": "synthetic", "evaluation": {"npz": "test.npz"}},
    "stages": [{"prune": {"macs_ratio": 0.4}}, "quantize"],
    "targets": ["onnx", {"tflite": {"input_layout": "nhwc"}}],
    "budget": {"max_drop": 0.01},
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(WRITTEN))
    return path


def names_of(steps: Any) -> list[str]:
    return [step.name for step in steps]


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("stages.0.prune.macs_ratio=0.5", lambda recipe: recipe.stages[0].prune.macs_ratio == 0.5),
        ("stages[0].prune.macs_ratio=5e-1", lambda recipe: recipe.stages[0].prune.macs_ratio == 0.5),
        ("stages.prune.macs_ratio=0.5", lambda recipe: recipe.stages[0].prune.macs_ratio == 0.5),
        ("stages.quantize.skip=[a, b]", lambda recipe: recipe.stages[1].quantize.skip == ("a", "b")),
        ("targets.onnx.vnni=false", lambda recipe: recipe.targets[0].onnx.vnni is False),
        ("targets=[coreml]", lambda recipe: names_of(recipe.targets) == ["coreml"]),
        ("budget.max_drop=0.02", lambda recipe: recipe.budget[0].max_drop == 0.02),
        ("data.train={npz: train.npz}", lambda recipe: recipe.data.train.npz == Path("train.npz")),
        ("data.calibration=null", lambda recipe: recipe.data.calibration is None),
        ('model.kwargs."a.b=c"=1', lambda recipe: recipe.model.kwargs == {"a.b=c": 1}),
        ("task=detection", lambda recipe: recipe.task.name == "detection"),
        ("model.classes=[yes, no]", lambda recipe: recipe.model.classes == ("yes", "no")),
    ],
)
def test_set_changes_one_value_wherever_it_is(written: Path, value: str, place: Any) -> None:
    assert place(read_changed(written, Changes([value])))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            Changes(["stages.prune.mac_ratio=1"]),
            ["stages[0].prune", "did you mean 'macs_ratio'", "--set stages."],
        ),
        (
            Changes(["stages.prune.macs_ratio=3"]),
            ["stages[0].prune.macs_ratio", "less than or", "(with --set st"],
        ),
        (Changes(["stage.0.prune=1"]), ["unknown key 'stage'; did you mean 'stages'", "(with --set stage.0"]),
        (Changes(["budget.max_drop=-1"]), ["budget.max_drop", "(with --set budget.max_drop=-1)"]),
        (Changes(["stages.7.prune=1"]), ["--set stages.7.prune=1: stages has no 7: it has 2", "stages.0"]),
        (Changes(["stages.prun.skip=[a]"]), ["did you mean 'prune'"]),
        (Changes(["name.first=x"]), ["name is 'x', which has no parts"]),
        (Changes(["seed"]), ["gives no value", "--set stages.prune"]),
        (Changes(["=1"]), ["names no key"]),
        (Changes(["seed=[1"]), ["--set seed=[1: its value is not YAML"]),
        (Changes(stages="prun"), ["no stage 'prun'; did you mean 'prune'", "--stages prun"]),
        (Changes(stages=","), ["--stages ,: names nothing"]),
        (Changes(targets="onx"), ["no target 'onx'; did you mean 'onnx'", "--targets onx"]),
        (
            Changes(["stages.prune.latency_ratio=0.5", "stages.prune.latency_target=tflite"], targets="onnx"),
            ["stages[0].prune.latency_target: 'tflite' is not listed", "--targets onnx"],
        ),
        (
            Changes(["stages.1.quantize.batch_size=0"], stages="quantize"),
            ["stages[0].quantize.batch_size", "(with"],
        ),
    ],
)
def test_change_is_refused_by_name_when_it_cannot_be_made(written: Path, changes: Changes, expected: list[str]) -> None:
    with pytest.raises(RecipeError) as refused:
        read_changed(written, changes)
    for part in (*expected, "fix: "):
        assert part in str(refused.value)


def test_option_is_not_blamed_for_what_the_file_has_wrong(written: Path) -> None:
    written.write_text(yaml.safe_dump({**WRITTEN, "seed": "x"}))
    with pytest.raises(RecipeError, match=r"seed: must be an integer\n"):
        read_changed(written, Changes(["budget.max_drop=0.5"]))


def test_stages_and_targets_keep_the_recipe_s_settings_and_order(written: Path) -> None:
    recipe = read_changed(written, Changes(stages="quantize,prune", targets="tflite,coreml"))
    assert names_of(recipe.stages) == ["prune", "quantize"]
    assert recipe.stages[0].config.macs_ratio == 0.4
    assert names_of(recipe.targets) == ["tflite", "coreml"]
    assert recipe.targets[0].config.input_layout == "nhwc"
    assert names_of(read_changed(written, Changes(stages="quantize")).stages) == ["quantize"]


def test_report_records_the_recipe_as_it_was_changed(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = project.folder / "out"
    options = ("--stages", "prune", "--set", "stages.prune.macs_ratio=0.7", "--set", "data.evaluation.limit=32")
    assert edgewright(monkeypatch, "run", str(project.write()), "--out", str(out), *options, "--json") == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert "[1/3] prune" in printed.err
    report = read_report(Path(document["report"]))
    assert report.run.recipe["stages"][0]["prune"]["macs_ratio"] == 0.7
    assert [stage.stage for stage in report.stages] == ["prune"]
    assert report.data["evaluation"].samples == 32
    assert document["rows"][0]["size_bytes"] == report.original.size_bytes
    assert document["verdict"]["text"]
    again = project.folder / "again.yaml"
    again.write_text(yaml.safe_dump(report.run.recipe))
    assert edgewright(monkeypatch, "run", str(again), "--out", str(out), "--quiet") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "report: " in printed.out
