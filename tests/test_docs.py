"""What the pages in docs/ say is valid as it stands there, for a run and for an editor."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.data.labels import keypoints, numbers, sequences
from pipeline.data.places import LEAST_SHARE, LEAST_SIDE, MAY_BE_POSITIONS, OTHER_IMAGE
from pipeline.data.source import FORMATS, DataSource
from pipeline.recipe import Recipe, parse_recipe
from tests import recipe_reference

TEXT = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
SNIPPETS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
MODELS = re.findall(r"```yaml\n(.*?)```", (Path(__file__).parents[1] / "docs" / "models.md").read_text(), re.DOTALL)


SCHEMA = jsonschema.Draft202012Validator(Recipe.model_json_schema())


def accept(recipe: dict[str, Any]) -> None:
    """A run takes the recipe, and so does the schema by which editors complete and check it."""
    parse_recipe(recipe)
    SCHEMA.validate(recipe)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_is_part_of_a_valid_recipe(snippet: str) -> None:
    data = {"evaluation": {"npz": "test.npz"}, **yaml.safe_load(snippet)}
    accept({"name": "docs", "model": {"checkpoint": "model.pt2"}, "data": data})


@pytest.mark.parametrize("snippet", MODELS)
def test_model_is_part_of_a_valid_recipe(snippet: str) -> None:
    accept({"name": "docs", "data": {"evaluation": {"npz": "test.npz"}}, **yaml.safe_load(snippet)})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task", "classification"),
        ("stages", ["quantize", {"prune": {"macs_ratio": 0.5}}]),
        ("targets", ["onnx", {"tflite": {"gpu": True}}]),
        ("budget", [{"metric": "top1", "max_drop": 0.01}]),
        ("data", {"calibration": "synthetic", "evaluation": {"npz": "test.npz"}}),
    ],
)
def test_schema_for_editors_takes_bare_names(key: str, value: Any) -> None:
    recipe = {"name": "docs", "model": {"checkpoint": "model.pt2"}, "data": {"evaluation": {"npz": "test.npz"}}}
    SCHEMA.validate({**recipe, key: value})
    with pytest.raises(jsonschema.ValidationError):
        SCHEMA.validate({**recipe, "data": {"evaluation": "syntetic"}})


def test_every_key_of_a_data_source_is_shown() -> None:
    sets = [yaml.safe_load(snippet).get(role) or {} for snippet in SNIPPETS for role in ("evaluation", "calibration")]
    shown = {key for source in sets for key in source if key != "limit"}
    assert shown == set(DataSource.model_fields) - {"limit"}
    assert set(FORMATS) < shown


def test_figures_and_refusals_are_those_of_the_code() -> None:
    assert (LEAST_SHARE, LEAST_SIDE) == (0.1, 1.0)
    moves = {"horizontal_flip", "rotation", "shift"}
    assert set(sequences(3).places.refused) == set(numbers((), MAY_BE_POSITIONS).places.refused) == moves
    assert set(OTHER_IMAGE.refused) == {"rotation", "shift", "color_jitter", "erasing"}
    assert set(keypoints(2).places.refused) == {"horizontal_flip"}


def test_recipe_reference_is_the_schemas() -> None:
    assert recipe_reference.PAGE.read_text() == recipe_reference.page(), "run python -m tests.recipe_reference"


def test_every_key_of_a_recipe_is_described() -> None:
    schema = Recipe.model_json_schema()
    entries = {name for name, node in schema["$defs"].items() if recipe_reference.is_list_entry(node)}
    nodes = {"Recipe": schema, **schema["$defs"]}
    assert [
        f"{name}.{key}"
        for name in nodes.keys() - entries
        for key, value in recipe_reference.properties(nodes[name]).items()
        if not value.get("description")
    ] == []
