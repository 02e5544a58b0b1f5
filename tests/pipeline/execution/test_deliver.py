from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core import Model, StageError, TargetError
from pipeline.execution.apply import run
from pipeline.execution.stages import STAGES
from pipeline.recipe import parse_recipe
from pipeline.report.model import read_report
from pipeline.target import Lowered, Session
from targets.onnx import OnnxTarget
from tests.pipeline.conftest import Project


@pytest.fixture
def exporting(project: Project) -> Project:
    """A recipe that only exports."""
    project.recipe |= {"targets": ["onnx"], "stages": []}
    return project


def stored(project: Project) -> list[str]:
    return sorted(entry.name for entry in (project.folder / ".store").iterdir() if entry.is_dir())


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


def test_run_reports_what_was_finished_when_a_stage_fails(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Model:
        raise StageError("the loss diverges")

    monkeypatch.setitem(STAGES, "distill", replace(STAGES["distill"], apply=fail))
    project.recipe |= {"targets": ["onnx"]}
    with pytest.raises(StageError, match="the loss diverges"):
        run(parse_recipe(project.recipe), project.folder / "out", root=project.folder)
    report = read_report(project.folder / "out" / "report.json")
    assert [stage.stage for stage in report.stages] == ["prune"]
    assert report.failure is not None
    assert (report.failure.stage, report.failure.reason) == ("distill", "the loss diverges")
    assert (report.targets[0].status, report.targets[0].reason) == ("skipped", "not reached: stage distill failed")
    assert report.verdict is not None
    assert not report.verdict.passed
    assert "the loss diverges" in (project.folder / "out" / "report.html").read_text()


def test_run_keeps_the_other_targets_when_one_cannot_be_loaded(
    exporting: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Session:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(OnnxTarget, "load", refuse)  # in this process alone: the check of the file has passed
    exporting.recipe |= {"targets": ["onnx", "tflite"]}
    report = run(parse_recipe(exporting.recipe), exporting.folder / "out", root=exporting.folder)
    onnx, tflite = report.targets
    assert (onnx.status, onnx.reason) == ("failed", "cannot be loaded: RuntimeError: no such kernel")
    assert onnx.artifact is not None
    assert onnx.verified is not None
    assert tflite.status == "ok"
    assert tflite.metrics is not None


def test_run_keeps_the_measurements_when_what_goes_with_them_fails(
    exporting: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("unknown operator")

    for extra in ("placement", "estimates", "cross_checks"):
        monkeypatch.setattr(OnnxTarget, extra, fail)
    (record,) = run(parse_recipe(exporting.recipe), exporting.folder / "out", root=exporting.folder).targets
    assert record.status == "ok"
    assert record.metrics is not None
    assert sum("unknown operator" in note for note in record.notes) == 3
