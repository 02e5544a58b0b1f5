"""What is registered at several places, such as a name in the recipe and the function that it stands for, agrees."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor, nn

import pipeline.recipe
import targets
from pipeline.core import Setting, TensorSpec
from pipeline.data.open import from_dataset
from pipeline.execution.deployed import TARGET_OF
from pipeline.execution.stages import STAGES
from pipeline.recipe import Importance, Observer, OnnxProvider, StageStep, TargetName, TargetStep
from pipeline.search.trials import SPACE, as_written
from pipeline.stages.prune.channels import coupled_channels, traceable_copy
from pipeline.stages.prune.importance import scorer
from pipeline.stages.quantize.ranges.methods import METHODS
from pipeline.target import Variant
from pipeline.tasks.lookup import names
from tests.tasks import follows

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def options_of(step: type[BaseModel], name: str) -> type[Setting]:
    """The configuration class of a stage or a target."""
    (found,) = (part for part in get_args(step.model_fields[name].annotation) if part is not type(None))
    return found


def test_every_range_method_of_the_recipe_has_its_function() -> None:
    assert set(get_args(Observer)) == METHODS.keys()


def test_readme_counts_the_range_methods() -> None:
    assert f"Of the {NUMBERS[len(get_args(Observer))]} range methods" in README


def test_every_importance_of_the_recipe_judges_channels_in_its_own_way() -> None:
    vector = TensorSpec(name="x", shape=(3,))
    data = from_dataset(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), (vector,))

    def importances(kind: Importance) -> Tensor:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
        nn.init.uniform_(network[1].weight)
        module = traceable_copy(network)
        score = scorer(kind, module, data, follows(torch.zeros(1, 2)))
        (group,), _ = coupled_channels(module, (vector,), score, round_to=1, max_layer_ratio=1.0)
        return group.importance

    found = {kind: importances(kind) for kind in get_args(Importance)}
    for kind in found:
        assert [other for other in found if torch.allclose(found[kind], found[other])] == [kind]


def test_readme_names_every_importance() -> None:
    (line,) = re.findall(r"importance: (.+)", README)
    assert set(re.findall(r"\w+", line.replace("# or", ""))) == set(get_args(Importance))


@pytest.mark.parametrize(("stage", "key"), [(stage, key) for stage, keys in SPACE.items() for key in keys])
def test_every_searched_value_is_one_that_the_recipe_takes(stage: str, key: str) -> None:
    options = options_of(StageStep, stage)
    assert key in options.model_fields
    for value in SPACE[stage][key]:
        written = {"macs_ratio": 0.5} if stage == "prune" else {}
        options.model_validate(written | {key: as_written(key, value)})


def test_every_task_has_a_file_a_test_and_a_line_in_the_docs() -> None:
    tested = (ROOT / "tests" / "pipeline" / "tasks" / "test_builtin.py").read_text()
    docs = (ROOT / "docs" / "tasks.md").read_text()
    for name in names():
        assert f'"{name}"' in tested
        assert f"`{name}`" in docs


def test_every_target_has_its_options_its_extra_and_its_suffix() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert (
        set(targets.TARGETS) == TargetStep.model_fields.keys() == set(get_args(TargetName)) == set(TARGET_OF.values())
    )
    assert targets.TARGETS.keys() <= extras.keys()
    assert extras["all"] == [
        f"edgewright[{','.join([*targets.TARGETS, 'search', 'keras', 'huggingface', 'datasets'])}]"
    ]
    (contract,) = (
        contract
        for contract in PROJECT["tool"]["importlinter"]["contracts"]
        if contract["name"] == "targets know nothing of each other"
    )
    assert contract["modules"] == [f"targets.{name}" for name in targets.TARGETS]


@pytest.mark.parametrize("name", targets.TARGETS)
def test_readme_names_every_target(name: str) -> None:
    assert f"[{name}]" in README
    assert f"`{name}/`" in README


@pytest.mark.parametrize("name", targets.TARGETS)
def test_target_knows_its_own_name_and_options(name: str) -> None:
    target = targets.get(name)
    assert target.name == name
    assert target.variants == ()


@pytest.mark.parametrize("name", targets.TARGETS)
def test_every_variant_of_the_recipe_is_one_of_the_target_contract(name: str) -> None:
    annotation = options_of(TargetStep, name).model_fields["variants"].annotation
    (choices, _) = get_args(annotation)
    assert set(get_args(choices)) <= set(get_args(Variant)) - {"fp32", "int8"}


def test_every_stage_of_the_recipe_can_be_run() -> None:
    assert STAGES.keys() == StageStep.model_fields.keys()


def test_every_execution_provider_of_the_recipe_has_its_name_and_device() -> None:
    providers = importlib.import_module("targets.onnx.providers")
    assert set(get_args(OnnxProvider)) == providers.NAMES.keys() == providers.DEVICE_OF.keys()


def settings() -> Iterator[tuple[str, str]]:
    """Every key that a recipe may hold, with the class that declares it."""
    for name, value in vars(pipeline.recipe).items():
        if isinstance(value, type) and issubclass(value, Setting) and value not in (Setting, StageStep, TargetStep):
            yield from ((name, field) for field in value.model_fields)


def test_every_key_of_the_recipe_is_read() -> None:
    read: set[Any] = set()
    for folder in ("pipeline", "targets"):
        for file in (ROOT / folder).rglob("*.py"):
            if file.name != "recipe.py":
                nodes = ast.walk(ast.parse(file.read_text()))
                read |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert [(owner, field) for owner, field in settings() if field not in read] == []
