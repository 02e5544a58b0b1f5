from typing import Any

import pytest

import targets
from pipeline.core import EdgewrightError, RecipeError, StageError
from pipeline.execution.prepare import check
from pipeline.machine import memory
from pipeline.recipe import parse_recipe
from tests.pipeline.conftest import Project


def test_check_refuses_when_the_student_cannot_take_the_models_place(project: Project) -> None:
    factory = project.recipe["model"]["factory"]
    project.recipe["stages"] = [{"distill": {"student": {"factory": factory, "kwargs": {"classes": 3}}}}]
    with pytest.raises(StageError, match=r"returns \[\[2, 3\]\], the original \[\[2, 4\]\]"):
        check(parse_recipe(project.recipe), project.folder)


def test_check_refuses_top1_when_evaluation_samples_have_no_labels(project: Project) -> None:
    project.recipe["budget"]["metric"] = "top1"
    project.recipe["data"]["evaluation"]["labels"] = None
    with pytest.raises(RecipeError, match="top1 needs labels"):
        check(parse_recipe(project.recipe), project.folder)


@pytest.mark.parametrize(("stage", "role"), [("distill", "train"), ("quantize", "calibration")])
def test_check_names_the_missing_data_when_a_stage_needs_it(project: Project, stage: str, role: str) -> None:
    project.recipe["stages"] = [{stage: {}}]
    del project.recipe["data"][role]
    with pytest.raises(RecipeError, match=f"data.{role}"):
        check(parse_recipe(project.recipe), project.folder)


def test_check_keeps_held_out_samples_apart_when_calibration_comes_from_the_training_file(project: Project) -> None:
    prepared = check(parse_recipe(project.recipe), project.folder)
    assert prepared.held_out is not None
    assert prepared.train is not None
    assert prepared.calibration is not None
    held_out = set(prepared.held_out.indices)
    assert len(held_out) == 64
    assert not held_out & set(prepared.train.indices)
    assert not held_out & set(prepared.calibration.indices)


@pytest.mark.parametrize(
    ("stage", "needed_by"),
    [
        ({"quantize": {"qat": {"epochs": 1}}}, "qat"),
        ({"prune": {"macs_ratio": 0.6, "recover": {"epochs": 1}}}, "recover"),
    ],
    ids=["qat", "recover"],
)
def test_check_names_what_trains_when_there_is_no_training_data(
    project: Project, stage: dict[str, object], needed_by: str
) -> None:
    project.recipe["stages"] = [stage]
    check(parse_recipe(project.recipe), project.folder)
    del project.recipe["data"]["train"]
    with pytest.raises(RecipeError, match=rf"data\.train: {needed_by} needs samples"):
        check(parse_recipe(project.recipe), project.folder)


def test_check_refuses_a_target_when_it_cannot_hold_the_weights_of_a_stage(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.recipe |= {"targets": ["onnx"], "stages": [{"quantize": {}}]}
    check(parse_recipe(project.recipe), project.folder)
    float_only = targets.get("onnx").capabilities.model_copy(update={"weight_dtypes": ("float32",)})
    monkeypatch.setattr("targets.onnx.target.OnnxTarget.capabilities", float_only)
    with pytest.raises(RecipeError, match=r"targets\.onnx: cannot hold int8 weights"):
        check(parse_recipe(project.recipe), project.folder)
    project.recipe["stages"] = []
    check(parse_recipe(project.recipe), project.folder)


def test_check_refuses_when_an_npz_unpacks_to_more_than_the_memory(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 30_000)
    monkeypatch.setattr("pipeline.models.load.require_memory", lambda *_, **__: None)
    with pytest.raises(EdgewrightError, match=r"data\.train: reading .*train\.npz: needs about 0\.0\d+ MiB of memory"):
        check(parse_recipe(project.recipe), project.folder)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ([{"metric": "top1"}, {"metric": "top1", "max_drop": 0.02}], "budget[1].metric: top1 has a budget already"),
        ([{"metric": "top1"}, {"metric": "top7"}], "budget[1].metric: there is no metric 'top7'"),
        ([{"metric": "top1", "max_drop": 3}], "budget.max_drop: 3 is more than a ratio can fall"),
        ([], "budget: is empty"),
    ],
)
def test_budgets_are_refused_with_their_place_in_the_list(project: Project, budget: list[Any], said: str) -> None:
    project.recipe["budget"] = budget
    with pytest.raises(RecipeError) as refused:
        check(parse_recipe(project.recipe), project.folder)
    assert said in str(refused.value)


NAN = """
import torch
import torchmetrics


class Odd(torchmetrics.Metric):
    higher_is_better = True

    def __init__(self, least):
        super().__init__()
        self.least = least
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, found, labels):
        self.count += len(found)

    def compute(self):
        return torch.tensor(1.0 if self.count > self.least else float("nan"))


def never():
    return Odd(10**6)


def of_many():
    return Odd(100)
"""


def test_metric_that_is_nan_of_all_samples_is_refused_and_one_that_needs_many_is_not(project: Project) -> None:
    module = f"odd_{project.folder.name}".replace("-", "_")
    (project.folder / f"{module}.py").write_text(NAN)
    project.recipe["budget"] = {"max_drop": 0.5}
    project.recipe["task"] = {"metrics": [f"{module}:of_many"]}
    assert [spec.name for spec in check(parse_recipe(project.recipe), project.folder).task.metrics] == ["of_many"]
    project.recipe["task"] = {"metrics": [f"{module}:never"]}
    with pytest.raises(RecipeError, match=r"task\.metrics: never: is nan for the original on all 256 samples"):
        check(parse_recipe(project.recipe), project.folder)


def test_labels_of_evaluation_alone_are_enough_for_a_task(project: Project) -> None:
    for role in ("train", "calibration"):
        project.recipe["data"][role]["labels"] = None
    project.recipe["task"], project.recipe["budget"] = "classification", {"metric": "top1"}
    prepared = check(parse_recipe(project.recipe), project.folder)
    assert prepared.evaluation.labelled
    assert prepared.train is not None
    assert not prepared.train.labelled
