import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.strict_yaml import dump_yaml, parse_yaml

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda part: st.lists(part) | st.dictionaries(st.text(st.characters(codec="utf-8")), part),
    max_leaves=8,
)


@given(VALUES | st.sampled_from(["1e-3", "0o17", "no", "1:30", "2024-01-01", "0x1", "~", ".nan", "=", "<<", "1_000"]))
def test_a_value_is_the_same_when_it_was_written_and_read_again(value: object) -> None:
    assert parse_yaml(dump_yaml({"value": value})) == {"value": value}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("010", 10),
        ("0o17", 15),
        ("0xff", 255),
        ("no", "no"),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("~", None),
        ("True", True),
    ],
)
def test_a_scalar_is_what_yaml_1_2_says(text: str, value: object) -> None:
    found = parse_yaml(f"x: {text}")["x"]
    assert found == value
    assert type(found) is type(value)


def test_a_merge_may_override_and_may_be_used_twice() -> None:
    text = "a: &k {x: 1}\nb: &l {<<: *k, y: 1}\nc: {<<: *l, x: 3}"
    assert parse_yaml(text) == {"a": {"x": 1}, "b": {"x": 1, "y": 1}, "c": {"x": 3, "y": 1}}
