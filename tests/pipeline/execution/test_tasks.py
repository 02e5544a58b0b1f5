"""Runs of models that are no classifiers, from the recipe to the report, by built-in metrics and by the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, R2Score
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from pipeline.execution.apply import run
from pipeline.execution.deployed import target_of
from pipeline.execution.samples import run_samples
from pipeline.recipe import Recipe, parse_recipe
from pipeline.report.model import Report, TargetRecord
from tests.pipeline.conftest import Project

MODULE = "networks_with_numbers"
CODE = '''
import torch
import torchmetrics
from torch import nn


def trunk():
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())


class Regressor(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.head = trunk(), nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.trunk(x).mean((2, 3)))


class Two(nn.Module):
    """A direction of three numbers, and how long it is."""

    def __init__(self):
        super().__init__()
        self.trunk, self.direction, self.length = trunk(), nn.Linear(16, 3), nn.Linear(16, 1)

    def forward(self, x):
        features = self.trunk(x).mean((2, 3))
        return self.direction(features), self.length(features).relu() + 1


class Map(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.head = trunk(), nn.Conv2d(16, 3, 1)

    def forward(self, x):
        return self.head(self.trunk(x))


class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.head = trunk(), nn.Linear(16, 1)

    def forward(self, x):
        return self.head(self.trunk(x).mean((2, 3)))[:, 0]


def scaled(outputs, inputs):
    direction, length = outputs
    return direction * length


def distance(student, teacher):
    return sum((ours - theirs).square().mean() for ours, theirs in zip(student, teacher))


def error():
    metric = torchmetrics.MeanAbsoluteError()
    metric.unit = "m"
    return metric


class Within(torchmetrics.Metric):
    """The share of values that are right to a tenth."""

    higher_is_better, unit = True, "ratio"

    def __init__(self):
        super().__init__()
        self.add_state("right", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("all", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, values, labels):
        self.right += ((values - labels).abs() < 0.1).sum()
        self.all += values.numel()

    def compute(self):
        return self.right / self.all


def within():
    return Within()


class Longest(torchmetrics.MaxMetric):
    """The largest of the second output: it sees all outputs."""

    higher_is_better = True

    def update(self, outputs, labels):
        direction, length = outputs
        super().update(length)


def longest():
    return Longest()
'''


def outputs_of(network: str, images: Tensor) -> tuple[Tensor, ...]:
    """The original's outputs."""
    namespace: dict[str, Any] = {}
    exec(CODE, namespace)  # the file itself is imported by the run
    torch.manual_seed(0)
    module = namespace[network]().eval()
    with torch.no_grad():
        found = module(images)
    return found if isinstance(found, tuple) else (found,)


def predictions(network: str, outputs: tuple[Tensor, ...]) -> Tensor:
    if network == "Two":
        return outputs[0] * outputs[1]
    return outputs[0].argmax(1) if network == "Map" else outputs[0]


def labels_of(network: str, images: Tensor) -> Tensor:
    """What the original nearly answers."""
    exact = predictions(network, outputs_of(network, images))
    if network == "Map":
        return exact
    generator = torch.Generator().manual_seed(7)
    return exact + 0.03 * torch.randn(exact.shape, generator=generator)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("tasks")
    (path / f"{MODULE}.py").write_text(CODE)
    namespace: dict[str, Any] = {}
    exec(CODE, namespace)
    for network in ("Regressor", "Two", "Map", "Scalar"):
        torch.manual_seed(0)
        save_file(namespace[network]().state_dict(), path / f"{network}.safetensors")
        for name, count, seed in (("train", 64, 1), ("test", 48, 2)):
            images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
            arrays = {"images": images.numpy(), "labels": labels_of(network, images).numpy()}
            np.savez(path / f"{network}_{name}.npz", **arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path)
        patch.setattr("pipeline.stages.benchmark.SECONDS_PER_CANDIDATE", 0.01)
        yield path


def recipe(network: str, *, labels: str | None = "labels", **changes: Any) -> Recipe:
    sets = {
        role: {"npz": f"{network}_{name}.npz", "labels": labels}
        for role, name in (("train", "train"), ("calibration", "train"), ("evaluation", "test"))
    }
    return parse_recipe(
        {
            "name": network.lower(),
            "model": {
                "factory": f"{MODULE}:{network}",
                "checkpoint": f"{network}.safetensors",
                "inputs": [{"name": "image", "shape": [3, 8, 8]}],
            },
            "data": sets,
            "stages": [
                {"prune": {"macs_ratio": 0.7}},
                {"distill": {"epochs": 1, "batch_size": 16, "learning_rate": 0.005}},
                {"quantize": {}},
            ],
            "targets": ["onnx", "coreml", "tflite"],
            **changes,
        }
    )


@dataclass(frozen=True)
class Case:
    network: str
    task: Any
    metrics: dict[str, Metric]
    """What torchmetrics computes of the same predictions."""
    budget: Any


CASES = {
    "regressor": Case(
        "Regressor",
        "regression",
        {"mae": MeanAbsoluteError(), "rmse": MeanSquaredError(squared=False), "r2": R2Score()},
        [{"metric": "mae", "max_drop": 1.0}, {"metric": "rmse", "max_drop_relative": 1.0}],
    ),
    "two outputs": Case(
        "Two",
        {
            "metrics": [f"{MODULE}:error", f"{MODULE}:within"],
            "postprocess": f"{MODULE}:scaled",
            "loss": f"{MODULE}:distance",
        },
        {"error": MeanAbsoluteError()},
        {"metric": "error", "max_drop": 1.0},
    ),
    "map": Case(
        "Map",
        "segmentation",
        {"miou": MulticlassJaccardIndex(3), "pixel_accuracy": MulticlassAccuracy(3, average="micro")},
        {"metric": "miou", "max_drop": 1.0},
    ),
    "scalar": Case(
        "Scalar",
        {"name": "regression", "metrics": [f"{MODULE}:error"]},
        {"error": MeanAbsoluteError()},
        {"metric": "error", "max_drop": 1.0},
    ),
}


def deployed(path: Path, images: Tensor) -> tuple[Tensor, ...]:
    """A file's outputs, run as `edgewright predict` runs it."""
    opened = target_of(path).open_to_run(path, threads=1)
    outputs = run_samples(opened, (images.numpy(),), path)
    return tuple(torch.from_numpy(np.asarray(output)) for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES))
def test_report_has_torchmetrics_values_when_a_model_is_no_classifier(name: str, folder: Path) -> None:
    case = CASES[name]
    out = folder / name.replace(" ", "_")
    report = run(recipe(case.network, task=case.task, budget=case.budget), out, root=folder)
    images = torch.rand(48, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = labels_of(case.network, images)

    def expected(outputs: tuple[Tensor, ...]) -> dict[str, float]:
        found = predictions(case.network, outputs)
        return {metric: float(made(found, labels)) for metric, made in case.metrics.items()}

    def recorded(metrics: dict[str, float] | None) -> dict[str, float]:
        assert metrics is not None
        return {metric: metrics[metric] for metric in case.metrics}

    assert report.failure is None
    assert recorded(report.original.metrics) == pytest.approx(expected(outputs_of(case.network, images)), rel=1e-4)
    assert report.stages[0].macs <= 0.7 * report.original.macs
    for target in report.targets:
        assert (target.target, target.status) == (target.target, "ok"), target.reason
        assert target.artifact is not None
        found = deployed(out / target.artifact.path, images)
        assert recorded(target.metrics) == pytest.approx(expected(found), rel=1e-3, abs=1e-5)
        of_first = next(each for each in target.differences if each.metric == next(iter(case.metrics)))
        assert of_first.low <= of_first.value <= of_first.high
    check_budgets(case, report)


def check_budgets(case: Case, report: Report) -> None:
    asked = case.budget if isinstance(case.budget, list) else [case.budget]
    assert [budget.metric for budget in report.budgets] == [budget["metric"] for budget in asked]
    assert all(set(budget.verdict.values()) == {"met"} for budget in report.budgets)
    is_ratio = case.network == "Map"
    assert (report.budget is not None) == is_ratio
    units = {info.name: info.unit for info in report.task.metrics} if report.task else {}
    assert units.get("error", "m") == "m"


def quantized(network: str, folder: Path, out: str, **changes: Any) -> Report:
    """A short run: one stage, one target."""
    asked = recipe(network, stages=[{"quantize": {}}], targets=["onnx"], **changes)
    return run(asked, folder / out, root=folder)


@pytest.mark.slow
def test_report_measures_fidelity_and_says_so_when_nothing_else_is_asked_for(folder: Path) -> None:
    report = quantized("Two", folder, "fidelity", labels=None)
    assert report.task is not None
    assert report.task.name == "fidelity"
    assert report.task.note is not None
    assert report.task.note.startswith("No task metric was asked for")
    assert report.task.note in (folder / "fidelity" / "report.html").read_text()
    (target,) = report.targets
    assert set(target.metrics or {}) == {"agreement", "signal", "cosine"}  # (N, 3) may be scores of classes
    assert [budget.metric for budget in report.budgets] == ["agreement"]
    check_fidelity(target, folder / "fidelity")


def check_fidelity(target: TargetRecord, out: Path) -> None:
    """Each output's SQNR, cosine and largest error, against NumPy."""
    images = torch.rand(48, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    assert target.artifact is not None
    assert target.fidelity is not None
    pairs = zip(outputs_of("Two", images), deployed(out / target.artifact.path, images), strict=True)
    for found, (original, tested) in zip(target.fidelity.values(), pairs, strict=True):
        o, t = original.double().numpy(), tested.double().numpy()
        assert found.sqnr_db == pytest.approx(10 * np.log10((o**2).sum() / ((o - t) ** 2).sum()), abs=0.05)
        assert found.max_abs_error == pytest.approx(np.abs(o - t).max(), rel=1e-2)
    direction = next(iter(target.fidelity.values()))
    assert 0.9 < direction.cosine <= 1


@pytest.mark.slow
def test_record_of_quantize_has_the_tasks_metric_and_the_sqnr_of_each_output(folder: Path) -> None:
    task = {"metrics": [f"{MODULE}:error"], "postprocess": f"{MODULE}:scaled"}
    report = quantized("Two", folder, "own", task=task, budget={"max_drop": 1.0})
    held_out = report.stages[0].details["held_out"]
    assert held_out["metric"] == "error"
    assert held_out["int8"] == pytest.approx(held_out["float"], abs=0.05)
    assert len(held_out["outputs_db"]) == 2
    assert all(db > 15 for db in held_out["outputs_db"].values())


@pytest.mark.slow
def test_own_metric_sees_all_outputs(folder: Path) -> None:
    task = {"metrics": [f"{MODULE}:longest"]}
    report = quantized("Two", folder, "longest", task=task, budget={"metric": "longest", "max_drop": 1.0})
    (target,) = report.targets
    assert target.artifact is not None
    images = torch.rand(48, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    _, lengths = deployed(folder / "longest" / target.artifact.path, images)
    assert target.metrics == {"longest": pytest.approx(float(lengths.max()), rel=1e-5)}
    (difference,) = target.differences
    assert difference.samples == 48
    assert difference.low <= difference.value <= difference.high


@pytest.mark.slow
def test_budget_of_few_samples_is_unsure_and_says_how_many_would_tell(project: Project) -> None:
    """No answer of 256 changes, but a drop of 1.48 points is as likely: z^2 / (256 + z^2)."""
    project.recipe |= {"stages": [], "targets": ["onnx"], "budget": {"metric": "top1", "max_drop": 0.01}}
    report = run(parse_recipe(project.recipe), project.folder / "out", root=project.folder)
    (target,) = report.targets
    difference = target.differences[0]
    assert (difference.metric, difference.value, difference.p_value) == ("top1", 0.0, 1.0)
    assert -difference.low == pytest.approx(1.959964**2 / (256 + 1.959964**2), rel=1e-3)
    assert (difference.verdict, report.budgets[0].verdict) == ("unsure", {"onnx": "unsure"})
    assert report.budget is not None
    assert report.budget.met == {"onnx": True}
    said = f"cannot tell with 256 samples; about {difference.enough_samples} would"
    assert report.verdict is not None
    assert not report.verdict.passed
    assert any(said in reason for reason in report.verdict.reasons)
    assert said in (project.folder / "out" / "report.html").read_text()
