from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.model import Report
from pipeline.report.noise import percentile, spread, unstable

samples = st.lists(st.integers(1, 10**9), min_size=2, max_size=50)


@given(samples)
def test_spread_equals_numpy_when_there_are_two_samples_or_more(values: list[int]) -> None:
    assert np.isclose(spread(values), np.std(values, ddof=1) / np.mean(values), rtol=1e-9, atol=1e-12)


@given(samples, st.integers(0, 100))
def test_percentile_equals_numpy_when_interpolated(values: list[int], rank: int) -> None:
    assert np.isclose(percentile(values, rank), np.percentile(values, rank), rtol=1e-12)


def test_only_the_scattered_measurement_is_listed_when_the_others_are_steady(report: Report) -> None:
    assert [(name, latency.threads) for name, latency, _ in unstable(report)] == [("onnx", 2)]
