import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline.core import Model, StageError, StageRecord
from pipeline.execution.apply import _checked, run
from pipeline.execution.prepare import check
from pipeline.models.capture import count_macs, count_parameters
from pipeline.recipe import parse_recipe
from pipeline.report.model import Report, read_report
from tests.pipeline.conftest import Project


def finish(project: Project, out: str = "out") -> Report:
    return run(parse_recipe(project.recipe), project.folder / out, root=project.folder)


def without_timings(report: Report) -> dict[str, object]:
    """What must be the same in every run of a recipe: all but times of day, durations and latencies."""
    values = json.loads(report.model_dump_json())
    for key in ("id", "started_at", "duration_s"):
        del values["run"][key]
    for stage in values["stages"]:
        del stage["duration_s"]
        stage["details"] = _without_seconds(stage["details"])
    del values["original"]["latency"]
    for target in values["targets"]:
        del target["latency"], target["fp32_latency"]
    return values


def _without_seconds(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_seconds(v) for k, v in value.items() if not k.endswith(("_s", "seconds"))}
    return [_without_seconds(item) for item in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_run_reports_a_smaller_model_that_keeps_its_accuracy_when_every_stage_and_target_is_asked(
    project: Project,
) -> None:
    project.recipe["targets"] = ["onnx", "coreml", "tflite"]
    report = finish(project)
    assert [stage.stage for stage in report.stages] == ["prune", "distill", "quantize"]
    assert report.stages[0].macs <= 0.6 * report.original.macs
    assert report.stages[0].parameters < report.original.parameters
    assert {record.target: record.status for record in report.targets} == dict.fromkeys(
        ("onnx", "coreml", "tflite"), "ok"
    )
    for record in report.targets:
        assert record.artifact is not None
        assert (project.folder / "out" / record.artifact.path).exists()
    for record in report.targets[0], report.targets[2]:
        assert record.parity is not None
        assert record.parity.top1_agreement is not None
        assert record.parity.top1_agreement >= 0.99
        assert {latency.kind for latency in record.latency} >= {"measured"}
    assert read_report(project.folder / "out" / "report.json") == report
    assert "<html" in (project.folder / "out" / "report.html").read_text()


@pytest.mark.slow
def test_run_ends_in_the_same_report_when_it_was_killed_after_a_stage(project: Project) -> None:
    del project.recipe["stages"][2]  # quantization adds seconds here and nothing to what is tested
    project.recipe["stages"][1]["distill"]["epochs"] = 200  # long enough to be killed in
    recipe, store = project.write(), project.folder / ".store"
    command = [sys.executable, "-m", "pipeline.cli", "run", str(recipe), "--out", str(project.folder / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=project.folder)
    deadline = time.monotonic() + 60
    while not finished(store):
        assert process.poll() is None, process.stderr.read() if process.stderr else None
        assert time.monotonic() < deadline, "pruning did not finish"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list((project.folder / "out").glob("report.*"))

    project.recipe["stages"][1]["distill"]["epochs"] = 1
    resumed = finish(project)
    fresh = run(parse_recipe(project.recipe), project.folder / "x", root=project.folder, store=project.folder / "new")
    assert without_timings(resumed) == without_timings(fresh)
    pruning = resumed.stages[0].duration_s
    assert finish(project).stages[0].duration_s == pruning  # to the last digit: it was not computed again


def finished(store: Path) -> list[Path]:
    return [entry for entry in store.glob("*") if not entry.name.startswith(".")]


OTHER_NETWORK = """
from torch import nn


def other(classes=4):
    return nn.Sequential(nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 4, classes))
"""


@pytest.mark.slow
def test_run_goes_on_from_the_store_when_the_student_is_of_another_architecture(project: Project) -> None:
    (project.folder / f"other_{project.folder.name}.py".replace("-", "_")).write_text(OTHER_NETWORK)
    factory = f"other_{project.folder.name}:other".replace("-", "_")
    project.recipe["stages"] = [
        {"prune": {"macs_ratio": 0.8}},
        {"distill": {"epochs": 1, "student": {"factory": factory}}},
        {"prune": {"macs_ratio": 0.015}},
    ]
    report, again = finish(project), finish(project, "again")
    assert report.stages[1].parameters == 16 * 25 + 16 + 64 * 4 + 4
    assert report.stages[2].parameters < report.stages[1].parameters
    assert report.stages == again.stages  # durations too: nothing was computed again
    logs = [(project.folder / out / "training_2.csv").read_text() for out in ("out", "again")]
    assert logs[0] == logs[1]
    assert logs[0].startswith("epoch,step,loss,learning_rate,metric\n1,1,")


@pytest.mark.slow
def test_store_never_unpickles_when_stages_are_read_back(project: Project) -> None:
    project.recipe["stages"][1]["distill"]["epochs"] = 1
    finish(project)
    unpickled: list[object] = []
    watching = True
    sys.addaudithook(
        lambda event, arguments: unpickled.append(arguments) if watching and event == "pickle.find_class" else None
    )
    torch.save({"probe": Path("x")}, project.folder / "probe.pt")
    torch.load(project.folder / "probe.pt", weights_only=False)
    assert unpickled, "the hook would not notice"
    unpickled.clear()
    finish(project)
    watching = False
    assert not unpickled


def mutating(model: Model) -> Model:
    with torch.no_grad():
        next(model.module.parameters()).add_(1)
    return model.after(model.module, recorded(model))


def silent(model: Model) -> Model:
    return model


def reshaping(model: Model) -> Model:
    return model.after(torch.nn.Sequential(model.module, torch.nn.Unflatten(1, (2, 2))), recorded(model))


def diverging(model: Model) -> Model:
    return model.after(torch.nn.Sequential(model.module, torch.nn.Threshold(1e9, float("nan"))), recorded(model))


def recorded(model: Model) -> StageRecord:
    return StageRecord(
        stage="test",
        config={},
        duration_s=0,
        parameters=count_parameters(model.module),
        macs=count_macs(model.module, model.inputs),
    )


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        (mutating, "changed its input"),
        (silent, "exactly one record"),
        (reshaping, "shapes of its outputs"),
        (diverging, "not finite"),
    ],
)
def test_run_refuses_a_result_when_a_stage_breaks_its_contract(project: Project, stage, problem: str) -> None:  # type: ignore[no-untyped-def]
    model = check(parse_recipe(project.recipe), project.folder).model
    with pytest.raises(StageError, match=problem):
        _checked(stage, model, "test")


def test_run_trains_with_rounding_and_leaves_its_input_alone(project: Project) -> None:
    project.recipe["stages"] = [{"quantize": {"qat": {"epochs": 1, "batch_size": 32}, "observers": ["minmax"]}}]
    project.recipe["targets"] = ["onnx"]
    report = finish(project)
    (stage,) = report.stages
    assert stage.details["qat"]["epochs"]
    assert report.targets[0].status == "ok"


def test_run_refuses_a_model_whose_answers_are_drawn_at_random_before_anything_is_written(project: Project) -> None:
    own = project.recipe["model"]["factory"].partition(":")[0]
    (project.folder / f"noisy_{own}.py").write_text(NOISY.format(own=own))
    project.recipe["model"]["factory"] = f"noisy_{own}:noisy"
    with pytest.raises(StageError, match="module '9' gives another result the second time"):
        finish(project)
    assert not (project.folder / "out").exists()


NOISY = """
import torch
from torch import nn

from {own} import convnet


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def noisy():
    return nn.Sequential(*convnet(), Noise())
"""
