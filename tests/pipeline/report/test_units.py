from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report import units


@given(st.floats(1e-9, 1e9), st.integers(1, 6))
def test_significant_stays_within_half_a_unit_of_the_last_digit_when_rounded(value: float, digits: int) -> None:
    text = units.significant(value, digits)
    assert "e" not in text
    assert abs(float(text) - value) <= 0.5 * 10.0 ** (1 - digits) * value * (1 + 1e-9)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_499, "999 kB"), (999_500, "1.00 MB")]
)
def test_size_changes_its_unit_when_a_thousand_is_reached(count: int, text: str) -> None:
    assert units.size(count) == text.replace(" ", units.NO_BREAK_SPACE)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("converged", True, "yes"),
        ("sqnr_db", None, "–"),
        ("layer", "stem.0", "stem.0"),
        ("lr", 0.05, "0.05"),
        ("loss", 0.081234, "0.08123"),
    ],
)
def test_by_name_prints_any_json_scalar_when_its_name_says_no_unit(name: str, value: object, text: str) -> None:
    assert units.by_name(name, value) == text


def test_significant_names_what_is_no_number_when_a_run_recorded_it() -> None:
    assert (units.significant(float("inf")), units.significant(float("nan"))) == ("inf", "nan")
