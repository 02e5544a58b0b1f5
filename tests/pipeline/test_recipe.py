import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import RecipeError
from pipeline.recipe import MAX_BYTES, Recipe, parse_recipe, read_recipe

MINIMAL = {
    "name": "tiny",
    "model": {
        "factory": "nets:tiny",
        "checkpoint": "tiny.safetensors",
        "inputs": [{"name": "image", "shape": [1, 8, 8]}],
    },
    "data": {"evaluation": {"npz": "test.npz"}},
}


def with_value(path: str, value: object) -> dict[str, object]:
    """MINIMAL with the value at a dotted path replaced."""
    import copy

    recipe = copy.deepcopy(MINIMAL)
    *parents, last = path.split(".")
    place: dict[str, object] = recipe
    for key in parents:
        place = place.setdefault(key, {})  # type: ignore[assignment]
    place[last] = value
    return recipe


def test_recipe_parses_and_survives_a_round_trip_when_every_part_is_given() -> None:
    recipe = parse_recipe(
        {
            **MINIMAL,
            "stages": [{"prune": {"macs_ratio": 0.4}}, {"distill": {"epochs": 3}}, "quantize"],
            "targets": ["onnx", {"tflite": {"npu": ["ethos-u55-256"]}}],
            "budget": {"metric": "agreement", "max_drop": 0.02},
        }
    )
    assert [step.name for step in recipe.stages] == ["prune", "distill", "quantize"]
    assert recipe.stages[0].config.macs_ratio == 0.4
    assert recipe.targets[1].config.npu == ("ethos-u55-256",)
    assert Recipe.model_validate(recipe.model_dump(mode="json", exclude_none=True)) == recipe


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({**MINIMAL, "stagse": []}, "unknown key 'stagse'; did you mean 'stages'?", id="top level"),
        pytest.param(
            {**MINIMAL, "stages": [{"prune": {"mac_ratio": 0.4}}]},
            "stages[0].prune: unknown key 'mac_ratio'; did you mean 'macs_ratio'?",
            id="inside a stage",
        ),
        pytest.param({**MINIMAL, "stages": [{"prnue": {}}]}, "did you mean 'prune'?", id="a stage's name"),
        pytest.param({**MINIMAL, "targets": ["onxx"]}, "did you mean 'onnx'?", id="a target's name"),
        pytest.param(
            with_value("data.evaluation.npz", None),
            "exactly one of npz, folder, table, huggingface, factory and synthetic",
            id="no source",
        ),
        pytest.param(with_value("model.factory", None), "add factory", id="weights without a factory"),
        pytest.param({**MINIMAL, "stages": [{"prune": {"macs_ratio": 3}}]}, "stages[0].prune.macs_ratio", id="range"),
        pytest.param({**MINIMAL, "stages": [{"prune": {}}]}, "give a budget", id="pruning without a budget"),
        pytest.param({**MINIMAL, "stages": ["quantize", {"distill": {}}]}, "nothing can follow quantize", id="order"),
        pytest.param({**MINIMAL, "targets": ["onnx", "onnx"]}, "listed once", id="twice"),
    ],
)
def test_recipe_names_field_and_fix_when_something_is_wrong(values: dict[str, object], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(values, where="recipe.yaml")
    assert expected in str(caught.value)
    assert str(caught.value).startswith("recipe.yaml: ")
    assert "fix: " in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [("a: [", "is not YAML"), ("", "is empty"), ("- 1", "not a mapping"), ("\x00", "is not YAML")],
)
def test_read_recipe_names_the_file_when_it_is_no_recipe(tmp_path: Path, content: str, expected: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(content)
    with pytest.raises(RecipeError, match=expected) as caught:
        read_recipe(file)
    assert str(file) in str(caught.value)


def test_read_recipe_says_so_when_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        read_recipe(tmp_path / "missing.yaml")


def test_read_recipe_waits_for_no_pipe_and_reads_no_endless_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    for name, problem in (("pipe", "no regular file"), ("zero", "no regular file"), ("large", "more than 1 MiB")):
        with pytest.raises(RecipeError, match=problem):
            read_recipe(tmp_path / f"{name}.yaml")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda part: st.lists(part) | st.dictionaries(st.text(), part),
        max_leaves=8,
    )
)
def test_parse_recipe_raises_nothing_but_recipe_error_when_given_any_mapping(value: object) -> None:
    for key in ("model", "data", "stages", "targets", "budget"):
        with pytest.raises(RecipeError):
            parse_recipe({**MINIMAL, key: value, "nmae": 1})
