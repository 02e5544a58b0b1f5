"""``edgewright check``: the plan of a run, and wrong recipes that are answered before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from pipeline.cli.changes import Changes
from pipeline.cli.check import plan_for
from pipeline.execution.apply import run
from pipeline.models.capture import count_macs, count_parameters
from pipeline.recipe import parse_recipe
from tests.pipeline.cli.conftest import edgewright
from tests.pipeline.conftest import Project

FRESH = """
import sys
from pipeline.cli import main
sys.argv = ["edgewright", *sys.argv[1:]]
try:
    main()
finally:
    assert not {"torch", "tensorflow", "coremltools", "onnxruntime", "transformers"} & sys.modules.keys()
"""


def test_plan_says_what_a_run_will_do_and_writes_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project.recipe["targets"] = ["onnx"]
    recipe = project.write()
    before = sorted(project.folder.rglob("*.y*ml"))
    assert edgewright(monkeypatch, "check", str(recipe), "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, bias=False), torch.nn.BatchNorm2d(16), torch.nn.Conv2d(16, 32, 3, bias=False),
        torch.nn.BatchNorm2d(32), torch.nn.Linear(32, 4),
    )  # fmt: skip
    assert plan["parameters"] == count_parameters(network)
    assert plan["macs"] == 9 * 16 * 64 + 9 * 16 * 32 * 16 + 32 * 4  # 8 x 8 and, behind the stride, 4 x 4 positions
    assert plan["data"] == {
        "train": 448,
        "calibration": 55,
        "held out": 64,
        "evaluation": 256,
    }  # one in eight is held out
    assert [step["name"] for step in plan["stages"]] == ["prune", "distill", "quantize"]
    assert plan["stages"][0]["settings"] == {"macs_ratio": 0.6}
    assert plan["targets"][0]["note"] == "file, accuracy and latency"
    assert 0 < plan["estimate"]["least_s"] < plan["estimate"]["most_s"]
    assert "ms for each sample" in plan["estimate"]["method"]
    assert sorted(project.folder.rglob("*.y*ml")) == before
    assert not (project.folder / "reports").exists()


def test_plan_names_the_time_of_an_earlier_run(project: Project) -> None:
    project.recipe["stages"] = []
    report = run(parse_recipe(project.recipe), project.folder / "out", root=project.folder)
    estimate = plan_for(project.write(), Changes(), project.folder / "out").estimate
    assert estimate.least_s == estimate.most_s == report.run.duration_s
    other = plan_for(project.write(), Changes(["data.evaluation.limit=9"]), project.folder / "out").estimate
    assert other.least_s < other.most_s


def test_count_macs_agrees_with_the_hand_s() -> None:
    assert count_macs(torch.nn.Conv2d(1, 16, 3, padding=1), (torch.zeros(1, 1, 8, 8),)) == 9 * 16 * 64


WRONG: list[tuple[str, Callable[[Project], object], str]] = [
    ("checkpoint", lambda p: (p.folder / "model.safetensors").unlink(), "model.safetensors: no such file"),
    ("samples", lambda p: (p.folder / "test.npz").unlink(), "test.npz: no such file"),
    ("module", lambda p: p.recipe["model"].update(factory="absent_net:net"), "there is no module 'absent_net'"),
    ("folder", lambda p: p.recipe["data"].update(train={"folder": "photos"}), "photos: no such folder"),
    ("masks", lambda p: p.recipe["data"].update(train={"folder": ".", "masks": "nix"}), "nix: no such folder"),
    ("file in place of a folder", lambda p: p.recipe["data"].update(train={"folder": "test.npz"}), "is a file, not a"),
    ("table", lambda p: p.recipe["data"].update(train={"table": "a.csv"}), "a.csv: no such file"),
    ("key", lambda p: p.recipe.update(stages=[{"quantise": {}}]), "did you mean 'quantize'"),
    ("metric's module", lambda p: p.recipe.update(task={"metrics": ["no_such_mod:m"]}), "no module 'no_such_mod'"),
    ("student", lambda p: p.recipe["stages"][1]["distill"].update(student={"factory": "no_mod:m"}), "module 'no_mod'"),
]


@pytest.mark.parametrize(("change", "expected"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_recipe_is_answered_before_anything_heavy_is_imported(
    project: Project, change: Callable[[Project], object], expected: str
) -> None:
    change(project)
    arguments = [sys.executable, "-c", FRESH, "check", str(project.write())]
    found = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert found.returncode == 2, found.stderr
    assert found.stderr.startswith("error: ")
    assert expected in found.stderr


@pytest.mark.parametrize("command", ["run", "search"])
def test_missing_file_is_told_at_once_by_every_command_that_takes_a_recipe(project: Project, command: str) -> None:
    (project.folder / "model.safetensors").unlink()
    arguments = [sys.executable, "-c", FRESH, command, str(project.write())]
    found = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert found.returncode == 2, found.stderr
    assert "model.safetensors: no such file" in found.stderr
