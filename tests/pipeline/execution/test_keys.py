from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.execution.apply import run
from pipeline.execution.keys import code_sha256, export_key, model_key, stage_key
from pipeline.execution.prepare import Prepared, check
from pipeline.recipe import parse_recipe
from tests.pipeline.conftest import Project


def test_code_sha256_changes_when_a_source_changes(tmp_path: Path) -> None:
    source = tmp_path / "stage.py"
    source.write_text("x = 1")
    before = code_sha256(source)
    source.write_text("x = 2")
    assert code_sha256(source) != before


def test_run_computes_a_stage_again_when_forward_was_edited_and_the_weights_were_not(project: Project) -> None:
    """In one process a module stays imported, so the edited file has another name."""
    project.recipe |= {"stages": [{"quantize": {"observers": ["minmax"]}}], "targets": []}
    module = project.recipe["model"]["factory"].partition(":")[0]
    source = (project.folder / f"{module}.py").read_text()
    reports = []
    for name, activation in ((f"{module}_a", "ReLU"), (f"{module}_b", "Tanh"), (f"{module}_c", "Tanh")):
        (project.folder / f"{name}.py").write_text(source.replace("ReLU", activation))
        project.recipe["model"]["factory"] = f"{name}:convnet"
        reports.append(run(parse_recipe(project.recipe), project.folder / "out", root=project.folder))
    assert reports[0].stages[0].details != reports[1].stages[0].details


def prepared(project: Project, **changes: Any) -> Prepared:
    return check(parse_recipe(project.recipe | changes), project.folder)


def key_of_first_stage(of: Prepared) -> str:
    (step, *_) = of.recipe.stages
    return stage_key(step, of.model, model_key(of), of.model.module, of)


def test_stage_key_follows_what_its_result_depends_on_and_nothing_else(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.recipe["stages"] = [{"prune": {"latency_ratio": 0.8, "latency_target": "onnx"}}]
    project.recipe["targets"] = [{"onnx": {}}]
    base = prepared(project)
    key = key_of_first_stage(base)
    assert key_of_first_stage(prepared(project)) == key
    assert key_of_first_stage(prepared(project, name="other")) == key
    assert key_of_first_stage(prepared(project, targets=[{"onnx": {"image_input": True}}])) != key  # it is timed there
    assert key_of_first_stage(prepared(project, seed=3)) != key
    assert key_of_first_stage(replace(base, evaluation=base.evaluation.take(5))) != key
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.execution.keys.package_versions", lambda: {"torch-pruning": "0"})
        assert key_of_first_stage(base) != key
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.execution.keys.cpu_name", lambda: "another CPU")
        assert key_of_first_stage(base) != key

    project.recipe["stages"] = [{"prune": {"macs_ratio": 0.8}}]
    unmeasured = key_of_first_stage(prepared(project))
    assert key_of_first_stage(prepared(project, targets=[{"onnx": {"image_input": True}}])) == unmeasured


def test_export_key_follows_the_targets_options(project: Project) -> None:
    def key(options: dict[str, Any]) -> str:
        of = prepared(project, targets=[{"onnx": options}])
        return export_key(of.targets[0], of.model, "model", of)

    assert key({}) == key({})
    assert key({}) != key({"image_input": True})


def test_model_key_changes_with_the_graph_when_code_and_weights_are_the_same(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = project.recipe["model"]["factory"].partition(":")[0]
    path = project.folder / f"{module}.py"
    path.write_text(
        f"import os\n{path.read_text()}".replace("nn.ReLU()", "nn.LeakyReLU(float(os.environ.get('SLOPE', '0')))")
    )
    monkeypatch.delitem(sys.modules, module, raising=False)
    before = model_key(prepared(project))
    assert model_key(prepared(project)) == before
    monkeypatch.setenv("SLOPE", "0.5")
    assert model_key(prepared(project)) != before
