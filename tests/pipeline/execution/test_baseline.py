"""The original against chance, and against what is expected of it; values by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.core import RecipeError, TensorSpec
from pipeline.data.open import from_dataset
from pipeline.data.samples import SampleSet
from pipeline.execution.apply import run
from pipeline.execution.baseline import check_baseline
from pipeline.tasks.lookup import built_in, for_task
from pipeline.tasks.task import Example, Task
from tests.pipeline.execution.tiny import tiny_recipe

POINTS = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
LARGEST = POINTS.argmax(1)


class Computed(nn.Module):
    """A model that computes a function of its inputs."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        return self._function(x)


def opened(name: str, labels: Tensor, function: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Task, SampleSet]:
    rows = list(zip(POINTS, labels, strict=False))
    samples = from_dataset(rows, (TensorSpec(name="x", shape=(4,)),))
    task = built_in(name, Example(inputs=(POINTS[:8],), outputs=(function(POINTS[:8]),)))
    return Computed(function), task, for_task(samples, task)


def checked(
    name: str, labels: Tensor, function: Callable[[Tensor], Tensor], expected: Any = None, own_metrics: bool = False
) -> str | None:
    return check_baseline(expected, *opened(name, labels, function), own_metrics=own_metrics)


def always_the_first(x: Tensor) -> Tensor:
    return torch.tensor([[1.0, 0, 0, 0]]).expand(len(x), -1)


MOSTLY_THE_FIRST = (torch.arange(400) % 10 == 0).long()


@pytest.mark.parametrize(
    ("name", "labels", "function"),
    [
        ("classification", LARGEST, lambda x: x),
        ("classification", LARGEST, lambda x: x + torch.tensor([2.0, 0, 0, 0])),  # 53 %
        ("regression", POINTS * 2, lambda x: 2.2 * x),
        ("multilabel", (POINTS > 0).long(), lambda x: x),
        ("binary", (POINTS[:, 0] > 0).long(), lambda x: x[:, :1]),
    ],
)
def test_model_that_is_better_than_chance_goes_on(name: str, labels: Tensor, function: Any) -> None:
    assert checked(name, labels, function) is None


@pytest.mark.parametrize(
    ("name", "labels", "function", "value"),
    [
        ("classification", LARGEST, lambda x: x.flip(1), "top1: 0.0"),  # classes in another order
        ("classification", LARGEST, always_the_first, "top1: 0.2"),
        ("classification", MOSTLY_THE_FIRST, always_the_first, "top1: 0.9"),
        ("classification", LARGEST, lambda x: torch.sin(1e4 * x), "top1: 0.2"),
        ("regression", POINTS * 2, lambda x: x * 0, "mae: 1.6"),
        ("binary", (POINTS[:, 0] > 0).long(), lambda x: x[:, 1:2], "auroc: 0.4"),
    ],
)
def test_model_that_is_no_better_than_chance_is_refused(name: str, labels: Tensor, function: Any, value: str) -> None:
    with pytest.raises(RecipeError) as refused:
        checked(name, labels, function)
    message = str(refused.value)
    assert message.startswith("model: ")
    for part in (
        "no better than with the labels of other samples",
        "data.preprocessing",
        "order of model.classes",
        "RGB or BGR",
        f"set model: {{expect: {{{value}",
    ):
        assert part in message
    spelled = message.partition("{expect: {")[2].partition("}")[0].split(": ")
    assert checked(name, labels, function, {spelled[0]: float(spelled[1])}) is None
    assert checked(name, labels, function, {}) is None
    assert "own" not in str(checked(name, labels, function, own_metrics=True))


def test_few_samples_at_chance_are_a_warning() -> None:
    warning = checked("classification", LARGEST[:40], always_the_first)
    assert warning is not None
    assert "on 40 evaluation samples, no better than with the labels of other samples" in warning
    assert checked("classification", LARGEST[:7], always_the_first) is None
    assert checked("classification", LARGEST[:40], lambda x: x) is None


def test_metric_of_the_users_that_fails_on_shuffled_labels_is_left_alone() -> None:
    module, task, samples = opened("classification", LARGEST, always_the_first)

    def fails(*_: Any) -> Tensor:
        raise TypeError("labels are no list")

    broken = replace(task, metrics=(replace(task.metrics[0], right=fails),))
    assert check_baseline(None, module, broken, samples, own_metrics=True) is None
    with pytest.raises(TypeError):
        check_baseline(None, module, broken, samples, own_metrics=False)


@pytest.mark.parametrize(
    ("expected", "field", "problem"),
    [
        ({"top1": 0.93}, "model.expect.top1", "is 100.0 % on 400 evaluation samples"),
        ({"top1": 1.0, "macro_f1": 0.5}, "model.expect.macro_f1", "not 50.0 %"),
        ({"top2": 1.0}, "model.expect.top2", "did you mean 'top1'?"),
        ({"agreement": 1.0}, "model.expect.agreement", "no metric of the task classification"),
    ],
)
def test_metric_off_what_is_expected_is_refused(expected: Any, field: str, problem: str) -> None:
    with pytest.raises(RecipeError) as refused:
        checked("classification", LARGEST, lambda x: x, expected)
    assert str(refused.value).startswith(f"{field}: ")
    assert problem in str(refused.value)


def test_tolerance_is_the_metrics_own_interval_and_never_less_than_a_point() -> None:
    """200 right of 400 have Wilson's interval 0.4513 to 0.5487 (by hand: centre 0.5, half 1.96 / 2 / sqrt(403.84))."""
    half = torch.where(torch.arange(400) % 2 == 0, LARGEST, (LARGEST + 1) % 4)
    for value, right in ((0.452, True), (0.548, True), (0.451, False), (0.549, False)):
        if right:
            assert checked("classification", half, lambda x: x, {"top1": value}) is None
        else:
            with pytest.raises(RecipeError, match=r"is 50.0 % on 400 evaluation samples \(95 %: 45.1 % to 54.9 %\)"):
                checked("classification", half, lambda x: x, {"top1": value})
    assert checked("regression", POINTS, lambda x: x + 1, {"mae": 1.0, "rmse": 1.009}) is None  # the same error always
    with pytest.raises(RecipeError, match="Root mean squared error of the original is 1 on 400"):
        checked("regression", POINTS, lambda x: x + 1, {"rmse": 1.011})


def test_run_stops_before_any_stage_or_warns_in_its_report(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(stages=[], offset=0.0)
    unsaid = recipe.model_copy(update={"model": recipe.model.model_copy(update={"expect": None})})
    report = run(unsaid, tmp_path / "out", root=tiny)
    (warning,) = report.warnings  # 32 samples
    assert warning in capsys.readouterr().err
    assert recipe.data.preprocessing.scale == 1 / 255
    with pytest.raises(RecipeError, match=r"(?s)model.expect.top1: .* not 93.0 %.*fix: check the weights"):
        run(
            recipe.model_copy(update={"model": recipe.model.model_copy(update={"expect": {"top1": 0.93}})}),
            tmp_path / "off",
            root=tiny,
        )
    assert not (tmp_path / "off").exists()


def test_what_is_doubtful_about_the_samples_is_the_first_cause() -> None:
    doubt = "data.evaluation: image looks normalised already"
    model = opened("classification", LARGEST, always_the_first)
    for expected in (None, {"top1": 0.9}):
        with pytest.raises(RecipeError, match=f"fix: {doubt}; check the weights"):
            check_baseline(expected, *model, own_metrics=False, doubts=(doubt,))
