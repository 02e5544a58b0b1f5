from pathlib import Path

import pytest

from pipeline.core import Model, TargetError
from pipeline.execution.apply import run
from pipeline.recipe import parse_recipe
from pipeline.target import Lowered
from targets.onnx import OnnxTarget
from tests.pipeline.conftest import Project


@pytest.fixture
def exporting(project: Project) -> Project:
    """A recipe that only exports."""
    project.recipe |= {"targets": ["onnx"], "stages": []}
    return project


def stored(project: Project) -> list[str]:
    return sorted(entry.name for entry in (project.folder / ".store").iterdir())


def test_run_exports_once_when_it_is_repeated(exporting: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse_recipe(exporting.recipe)
    first = run(recipe, exporting.folder / "first", root=exporting.folder).targets[0]

    def refuse(*_: object, **__: object) -> Lowered:
        raise AssertionError("it was exported again")

    monkeypatch.setattr(OnnxTarget, "lower", refuse)
    again = run(recipe, exporting.folder / "again", root=exporting.folder).targets[0]
    assert again.artifact == first.artifact
    assert (exporting.folder / "again" / "onnx" / "model.onnx").is_file()
    assert len(stored(exporting)) == 1


def test_store_keeps_nothing_when_an_export_failed(exporting: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    lower = OnnxTarget.lower

    def fail(self: OnnxTarget, model: Model, out_dir: Path, *, name: str) -> Lowered:
        lower(self, model, out_dir, name=name)
        raise TargetError("no form for this operator")

    monkeypatch.setattr(OnnxTarget, "lower", fail)
    recipe = parse_recipe(exporting.recipe)
    record = run(recipe, exporting.folder / "failed", root=exporting.folder).targets[0]
    assert (record.status, record.reason) == ("failed", "no form for this operator")
    assert stored(exporting) == []
    monkeypatch.undo()
    assert run(recipe, exporting.folder / "mended", root=exporting.folder).targets[0].status == "ok"
