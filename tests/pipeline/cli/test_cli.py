import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.pipeline.cli.conftest import edgewright, refusal
from tests.pipeline.conftest import Project, quadrants


def misspell_a_key(project: Project) -> None:
    project.recipe["stages"][0] = {"prune": {"mac_ratio": 0.4}}


def remove_the_checkpoint(project: Project) -> None:
    (project.folder / "model.safetensors").unlink()


def widen_a_layer(project: Project) -> None:
    weights = load_file(project.folder / "model.safetensors")
    weights["8.weight"] = torch.zeros(4, 33)
    save_file(weights, project.folder / "model.safetensors")


def change_the_data(**arrays: np.ndarray) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        np.savez(project.folder / "test.npz", **{**quadrants(16, 0), **arrays})

    return change


MISTAKES = [
    pytest.param(misspell_a_key, ["recipe.yaml", "stages[0].prune", "did you mean 'macs_ratio'"], id="unknown key"),
    pytest.param(remove_the_checkpoint, ["model.safetensors", "no such file"], id="missing checkpoint"),
    pytest.param(lambda p: (p.folder / "test.npz").unlink(), ["test.npz", "no such file"], id="missing data"),
    pytest.param(widen_a_layer, ["model.safetensors", "8.weight", "[4, 33]", "[4, 32]"], id="wrong shape"),
    pytest.param(
        change_the_data(labels=np.full(16, 7)), ["test.npz", "label 7", "4 classes"], id="labels out of range"
    ),
    pytest.param(change_the_data(images=np.full((16, 8, 8), np.nan)), ["test.npz", "sample 0", "NaN"], id="NaN inputs"),
    pytest.param(
        change_the_data(images=np.zeros((0, 8, 8)), labels=np.zeros(0)), ["test.npz", "no samples"], id="empty data set"
    ),
]


@pytest.mark.parametrize(("mistake", "expected"), MISTAKES)
def test_run_exits_with_2_and_writes_nothing_when_the_user_made_a_mistake(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mistake: Callable[[Project], None],
    expected: list[str],
) -> None:
    mistake(project)
    recipe = project.write()
    out = project.folder / "out"
    assert edgewright(monkeypatch, "run", str(recipe), "--out", str(out)) == 2
    printed = refusal(capsys.readouterr().err)
    assert printed.startswith("error: ")
    assert "Traceback" not in printed
    for part in (*expected, "fix: "):
        assert part in printed
    assert not out.exists()
    assert not (project.folder / ".store").exists()


def test_schema_accepts_the_demo_recipe_when_printed_for_an_editor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import jsonschema
    import yaml

    import calibration_data.fashion_mnist

    assert edgewright(monkeypatch, "schema", "recipe") == 0
    schema = json.loads(capsys.readouterr().out)
    recipe = Path(calibration_data.fashion_mnist.__file__).parent / "recipe.yaml"
    jsonschema.validate(yaml.safe_load(recipe.read_text()), schema)


def test_help_names_every_command_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgewright(monkeypatch, "--help") == 0
    printed = capsys.readouterr().out
    for command in COMMANDS:
        assert command in printed
    assert "Exit codes: 0 done" in printed


COMMANDS = ("init", "doctor", "check", "run", "demo", "search", "schema", "show", "compare", "predict", "inspect")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_when_a_command_is_asked(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgewright(monkeypatch, command, "--help") == 0
    assert f"edgewright {command}" in capsys.readouterr().out.partition("For example:")[2]


def test_version_is_the_package_s(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert edgewright(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"edgewright {version('edgewright')}\n"


def test_mistake_is_a_document_when_json_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgewright(monkeypatch, "run", str(tmp_path / "absent.yaml"), "--json") == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["error"] == {
        "problem": "no such file",
        "where": str(tmp_path / "absent.yaml"),
        "fix": "give the path of a recipe.yaml",
    }
    assert printed.err.startswith("error: ")


PROBE = """
import sys, time
started = time.perf_counter()
import {module}
print(time.perf_counter() - started)
heavy = {{"torch", "tensorflow", "coremltools", "onnx", "onnxruntime", "litert_torch"}} & sys.modules.keys()
assert not heavy, heavy
"""


@pytest.mark.parametrize("module", ["pipeline", "pipeline.cli", "pipeline.report.model", "targets"])
def test_import_loads_no_framework_when_nothing_is_used_yet(module: str) -> None:
    result = subprocess.run([sys.executable, "-c", PROBE.format(module=module)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    if module == "pipeline":
        assert float(result.stdout) < 0.2
