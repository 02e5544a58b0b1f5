"""Metrics, postprocessing and losses of the user's own: what is taken, and the one error where it cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.core import RecipeError
from pipeline.tasks.differences import Paired, differences
from pipeline.tasks.own import own, try_metrics
from pipeline.tasks.task import Example, Task
from tests.tasks import follows

CODE = '''
import torch
import torchmetrics


class Mean(torchmetrics.Metric):
    """The mean prediction; what it gathers and how it ends is up to its heirs."""

    higher_is_better = True

    def __init__(self):
        super().__init__()
        self.add_state("found", [], dist_reduce_fx="cat")

    def update(self, found, labels):
        self.found.append(found)

    def compute(self):
        return torch.cat(self.found).mean()


def mean():
    return Mean()


def raises():
    raise ValueError("no such thing")


class RaisingUpdate(Mean):
    def update(self, found, labels):
        raise RuntimeError("cannot compare a cat")


class RaisingCompute(Mean):
    def compute(self):
        raise RuntimeError("not today")


class Vector(Mean):
    def compute(self):
        return torch.ones(2)


class Named(Mean):
    def compute(self):
        return {"mean": torch.ones(())}


class Nan(Mean):
    def compute(self):
        return torch.tensor(float("nan"))


class ReadsNamed(Mean):
    def update(self, found, labels):
        super().update(found["values"], labels)


class NoDirection(Mean):
    higher_is_better = None


class InMetres(Mean):
    higher_is_better, unit = False, "m"


class WithoutStates(torchmetrics.Metric):
    higher_is_better = True

    def __init__(self):
        super().__init__()
        self.found = []

    update, compute = Mean.update, Mean.compute


def number():
    return 3


def doubled(outputs, inputs):
    return 2 * outputs


def half(outputs, inputs):
    return outputs[: len(outputs) // 2]


def nothing(outputs, inputs):
    return None


def broken(outputs, inputs):
    raise KeyError("logits")


def named(outputs, inputs):
    return {"values": outputs}


def distance(student, teacher):
    return (student - teacher).abs().mean()


def vector(student, teacher):
    return student - teacher


def detached(student, teacher):
    return torch.tensor(1.0)


def infinite(student, teacher):
    return (student - teacher).mean() / 0.0


def plain(student, teacher):
    return 1.0
'''
OUTPUTS = torch.arange(8.0)[:, None] + 1
EXAMPLE = Example(inputs=(torch.zeros(8, 2),), outputs=(OUTPUTS,))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{module_of(tmp_path)}.py").write_text(CODE)
    return tmp_path


def module_of(root: Path) -> str:
    """Modules stay imported, so every test has its own."""
    return f"own_{root.name}".replace("-", "_")


def made(root: Path, *, metrics: tuple[str, ...] = ("mean",), **parts: str) -> Task:
    name = module_of(root)
    wanted = {"postprocess": None, "loss": None, **{part: f"{name}:{value}" for part, value in parts.items()}}
    return own(follows(OUTPUTS), metrics=[f"{name}:{each}" for each in metrics], example=EXAMPLE, root=root, **wanted)


def test_parts_take_the_place_of_the_tasks(root: Path) -> None:
    task = made(root, metrics=("mean", "InMetres"), postprocess="doubled", loss="distance")
    assert [(spec.name, spec.info.unit, spec.info.higher_is_better) for spec in task.metrics] == [
        ("mean", "", True),
        ("InMetres", "m", False),
    ]
    assert torch.equal(task.predict((OUTPUTS,), EXAMPLE.inputs), 2 * OUTPUTS)
    assert float(task.terms((OUTPUTS + 1,), (OUTPUTS,), 4.0)[0]) == 1.0
    assert try_metrics(task, EXAMPLE, torch.zeros(8)) == []


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"metrics": ("nowhere",)}, "has no 'nowhere'"),
        ({"metrics": ("raises",)}, "it failed: ValueError: no such thing"),
        ({"metrics": ("number",)}, "returns a int, not a torchmetrics.Metric"),
        ({"metrics": ("NoDirection",)}, "does not say whether higher is better"),
        ({"postprocess": "half"}, "returns 4 predictions for 8 samples"),
        ({"postprocess": "nothing"}, "returns nothing"),
        ({"postprocess": "broken"}, "it fails on the original's outputs: KeyError: 'logits'"),
        ({"loss": "vector"}, "returns a tensor of shape (8, 1), not a scalar tensor"),
        ({"loss": "plain"}, "returns a float, not a scalar tensor"),
        ({"loss": "detached"}, "returns a number without a gradient"),
        ({"loss": "infinite"}, "is inf for a student that is 1 % off"),
    ],
)
def test_part_is_refused_before_a_run_when_it_cannot_be_used(root: Path, parts: dict[str, str], said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        made(root, **parts)  # type: ignore[arg-type]
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("RaisingUpdate", "RuntimeError: cannot compare a cat"),
        ("RaisingCompute", "RuntimeError: not today"),
        ("Vector", "computes a tensor of shape (2,), not one number"),
        ("Named", "computes a dict, not one number"),
    ],
)
def test_metric_is_refused_when_it_fails_on_real_samples(root: Path, metric: str, said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        try_metrics(made(root, metrics=(metric,)), EXAMPLE, torch.zeros(8))
    assert said in str(refused.value)
    assert f"task.metrics: {metric}" in str(refused.value)


def test_metrics_that_are_no_numbers_are_named(root: Path) -> None:
    assert try_metrics(made(root, metrics=("mean", "Nan")), EXAMPLE, torch.zeros(8)) == ["Nan"]


def difference_of(task: Task, before: Tensor, after: Tensor) -> tuple[float, float, float, str]:
    sides = []
    for outputs in (before, after):
        side = Paired(task, len(outputs), labelled=True)
        side.update((torch.zeros(len(outputs), 2),), (outputs,), (outputs,), torch.zeros(len(outputs)))
        sides.append(side)
    (found,) = differences(*sides)
    return found.value, found.low, found.high, found.method


def test_metric_that_gathers_lists_has_an_interval(root: Path) -> None:
    torch.manual_seed(0)
    noise = torch.randn(100, 1)
    value, low, high, method = difference_of(made(root), torch.zeros(100, 1), noise)
    assert value == pytest.approx(float(noise.mean()))
    half = 1.96 * float(noise.std()) / 10
    assert (high - low) / 2 == pytest.approx(half, rel=0.3)
    assert method.startswith("bootstrap over 100 blocks")


def test_metric_without_states_has_a_value_and_says_why_it_has_no_interval(root: Path) -> None:
    value, low, high, method = difference_of(
        made(root, metrics=("WithoutStates",)), torch.zeros(30, 1), torch.ones(30, 1)
    )
    assert (value, low, high) == (1.0, 1.0, 1.0)
    assert method == "no interval: its states cannot be merged"


def test_predictions_may_be_a_mapping(root: Path) -> None:
    task = made(root, metrics=("ReadsNamed",), postprocess="named")
    assert try_metrics(task, EXAMPLE, torch.zeros(8)) == []
    value, low, high, _ = difference_of(task, torch.zeros(30, 1), torch.ones(30, 1))
    assert (value, low, high) == (1.0, 1.0, 1.0)
