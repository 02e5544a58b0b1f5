"""Range methods and statistics against NumPy and hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stages.quantize.ranges.methods import (
    METHODS,
    Evidence,
    entropy,
    least_error_through,
    minmax,
    moving_average,
    mse,
    percentile,
)
from pipeline.stages.quantize.ranges.statistics import BINS, RUN, SEEN, Statistics, merge
from pipeline.stages.quantize.scales.numbers import (
    QMAX,
    QMIN,
    affine_parameters,
    channel_scales,
    fake_quantize,
    representable,
)


def seen(*tensors: torch.Tensor) -> Statistics:
    """Statistics of all values of these tensors, none of them too large to be counted whole."""
    statistics = Statistics(counts=True, averages=True)
    for tensor in tensors:
        statistics.update(tensor.reshape(1, -1) if tensor.ndim == 1 else tensor)
    return statistics


def rounding_error(values: np.ndarray, low: float, high: float) -> float:
    """Mean squared error of the int8 grid over [low, high], re-derived."""
    scale = (high - low) / 255
    zero_point = np.clip(np.rint(-128 - low / scale), -128, 127)
    codes = np.clip(np.rint(values / scale) + zero_point, -128, 127)
    return float(np.mean((values - (codes - zero_point) * scale) ** 2))


def test_minmax_is_the_extremes_over_all_batches() -> None:
    assert minmax(seen(torch.tensor([-1.0, 3.0]), torch.tensor([0.5, -4.0]))) == (-4.0, 3.0)


def test_histogram_counts_stay_exact_when_the_range_doubles_twice() -> None:
    statistics = seen(torch.tensor([0.1, -0.9, 1.0]), torch.tensor([3.5, -0.3]))
    assert statistics.limit == 4.0
    assert statistics.counts.sum() == 5
    edges = np.linspace(-4, 4, BINS + 1)
    expected, _ = np.histogram([0.1, -0.9, np.nextafter(1, 0), 3.5, -0.3], edges)  # a peak counts in the bin below it
    np.testing.assert_array_equal(statistics.counts, expected)


def test_statistics_size_does_not_grow_when_samples_are_added() -> None:
    few, many = seen(torch.randn(10)), seen(*(torch.randn(1000) for _ in range(50)))
    assert few.counts.nbytes == many.counts.nbytes


def test_percentile_matches_numpy_within_a_bin() -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    low, high = percentile(seen(*values.split(SEEN)), share=0.99)
    expected = np.quantile(values.numpy(), [0.005, 0.995])
    width = 2 * float(values.abs().max()) / BINS
    assert abs(low - expected[0]) <= 1.01 * width
    assert abs(high - expected[1]) <= 1.01 * width


def test_percentile_is_the_extremes_when_there_are_few_values() -> None:
    assert percentile(seen(torch.tensor([-1.0, 0.0, 2.0]))) == (-1.0, 2.0)


def test_mse_clips_an_outlier_when_that_lowers_the_error() -> None:
    values = torch.cat([torch.tensor([1.6]), torch.rand(400_000, generator=torch.Generator().manual_seed(1))])
    low, high = mse(seen(*values.split(SEEN)))
    candidates = [a * 1.6 for a in np.arange(1, 0.2, -0.01)]
    best = min(candidates, key=lambda top: rounding_error(values.numpy(), 0.0, top))
    assert low == 0.0
    assert rounding_error(values.numpy(), 0.0, high) <= 1.01 * rounding_error(values.numpy(), 0.0, best)
    assert high < 1.2


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_every_method_gives_a_usable_grid_when_a_tensor_is_always_zero(method) -> None:  # type: ignore[no-untyped-def]
    assert affine_parameters(*method.read(Evidence(seen(torch.zeros(8))))) == (1.0, QMIN)


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_every_method_represents_a_constant(method) -> None:  # type: ignore[no-untyped-def]
    scale, zero_point = affine_parameters(*method.read(Evidence(seen(torch.full((8,), -3.0)))))
    code = np.clip(np.rint(-3.0 / scale) + zero_point, QMIN, QMAX)
    assert (code - zero_point) * scale == pytest.approx(-3.0, abs=scale / 2)


@given(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32))
def test_grid_holds_zero_and_rounds_within_half_a_step(first: float, second: float) -> None:
    low, high = sorted((first, second))
    scale, zero_point = affine_parameters(low, high)
    assert scale > 0
    assert QMIN <= zero_point <= QMAX
    values = np.linspace(min(low, 0), max(high, 0), 101)
    codes = np.rint(values / scale) + zero_point
    inside = (codes >= QMIN) & (codes <= QMAX)
    # The zero point is rounded, so one end of the range may lie up to half a step outside the grid.
    restored = (np.clip(codes, QMIN, QMAX) - zero_point) * scale
    assert np.all(np.abs(restored - values)[inside] <= scale / 2 * (1 + 1e-9))
    assert np.all(np.abs(restored - values) <= scale * (1 + 1e-9))


def test_channel_scales_are_the_peak_over_127_and_borrow_the_largest_for_a_dead_channel() -> None:
    weight = torch.tensor([[1.27, -0.5], [0.0, 0.0], [-2.54, 1.0]])
    scales = channel_scales(weight, 0)
    assert scales[1] == scales[2]
    for scale, peak in zip(scales[[0, 2]].tolist(), (1.27, 2.54), strict=True):
        assert peak / 127 <= scale * (1 + 1e-6) <= peak / 127 * 1.005


def test_channel_scales_are_one_over_127_when_the_whole_weight_is_zero() -> None:
    torch.testing.assert_close(channel_scales(torch.zeros(2, 3), 0), torch.full((2,), 1 / 127), rtol=0.005, atol=0)
    assert channel_scales(torch.zeros(2, 3), 0).min() >= 1 / 127


@given(st.floats(2.0**-14, 1e4))
def test_representable_scale_is_the_same_in_fp16_and_hardly_larger(scale: float) -> None:
    chosen = float(representable(np.array(scale)))
    assert float(np.float16(chosen)) == chosen
    assert scale * (1 - 1e-8) <= chosen <= scale * 1.01
    assert float(representable(np.array(chosen))) == chosen


@given(st.floats(1e-6, 1e3), st.integers(-1023, 1023))
def test_quarter_steps_are_exact_when_divided_or_multiplied_by_the_reciprocal(scale: float, quarters: int) -> None:
    step = np.float32(representable(np.array(scale)))
    value = step * np.float32(quarters / 4)
    assert value / step == quarters / 4
    assert value * (np.float32(1) / step) == quarters / 4


def test_fake_quantize_rounds_along_the_channel_axis() -> None:
    weight = torch.tensor([[0.4, 1.2], [-0.6, 9.2]])
    expected = torch.tensor([[0.0, 2.0], [-1.0, 10.0]])
    torch.testing.assert_close(fake_quantize(weight, torch.tensor([1.0, 2.0]), 1), expected)


def test_merged_statistics_are_those_of_all_values_together() -> None:
    first, second = torch.linspace(-1, 2, 1000), torch.linspace(-5, 0.5, 700)
    merged, together = merge([seen(first), seen(second)]), seen(first, second)
    assert (merged.low, merged.high) == (together.low, together.high)
    assert merged.counts.sum() == 1700
    quantiles = [
        np.interp([0.1, 0.5, 0.9], np.cumsum(statistics.counts) / 1700, statistics.centres)
        for statistics in (merged, together)
    ]
    np.testing.assert_allclose(*quantiles, atol=2 * 5 / BINS * 2)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20))
def test_no_value_is_lost_when_ranges_grow(values: list[float]) -> None:
    statistics = seen(*(torch.tensor([value]) for value in values))
    assert statistics.counts.sum() == len(values)
    assert statistics.low == min(*values, 0.0)
    assert statistics.high == max(*values, 0.0)


def test_values_that_are_not_finite_are_refused_and_not_counted() -> None:
    statistics = seen(torch.tensor([1.0, -1.0]))
    assert not statistics.update(torch.tensor([float("inf"), 5.0]))
    assert not statistics.update(torch.tensor([float("nan")]))
    assert statistics.high == 1.0


@pytest.mark.parametrize("worst", [False, True], ids=["squared", "largest"])
def test_range_through_hardswish_spends_no_steps_below_minus_three(worst: bool) -> None:
    values = torch.linspace(-8, 8, 100_001)
    hardswish = lambda x: x * np.clip(x + 3, 0, 6) / 6  # noqa: E731
    low, high = least_error_through(seen(*values.split(SEEN)), hardswish, worst=worst)
    assert -3.3 <= low <= -2.5
    assert 7.5 <= high <= 8.0

    def loss(low: float, high: float) -> float:
        scale, zero_point = affine_parameters(low, high)
        rounded = (np.clip(np.rint(values.numpy() / scale) + zero_point, -128, 127) - zero_point) * scale
        return float(np.mean((hardswish(rounded) - hardswish(values.numpy())) ** 2))

    assert loss(low, high) < 0.6 * loss(-8.0, 8.0)


def test_moving_average_weighs_samples_alike_and_then_forgets_slowly() -> None:
    samples = torch.randn(150, 7, generator=torch.Generator().manual_seed(0))
    low = high = 0.0
    for count, sample in enumerate(samples.numpy(), start=1):
        share = max(0.01, 1 / count)
        low, high = low + share * (sample.min() - low), high + share * (sample.max() - high)
    np.testing.assert_allclose(moving_average(seen(samples)), (low, high), rtol=1e-6)
    np.testing.assert_allclose(moving_average(seen(*samples.split(20))), (low, high), rtol=1e-6)  # whatever the batches


def test_moving_average_of_a_few_samples_is_the_mean_of_their_extremes() -> None:
    assert moving_average(seen(torch.tensor([[-1.0, 2.0], [-3.0, 6.0]]))) == (-2.0, 4.0)


def divergence(values: np.ndarray, low: float, high: float, width: float) -> float:
    """Kullback-Leibler divergence of the int8 histogram from the float one, re-derived bin by bin."""
    scale = (high - low) / 255
    counts: dict[int, int] = {}
    for value in values:
        counts[int(np.floor(value / width))] = counts.get(int(np.floor(value / width)), 0) + 1
    centre = {index: (index + 0.5) * width for index in counts}
    inside = sorted(index for index in counts if low <= centre[index] <= high)
    p = {index: float(counts[index]) for index in inside}
    p[inside[0]] += sum(count for index, count in counts.items() if centre[index] < low)
    p[inside[-1]] += sum(count for index, count in counts.items() if centre[index] > high)
    steps: dict[int, list[int]] = {}
    for index in inside:
        steps.setdefault(round(centre[index] / scale), []).append(index)
    q = {index: sum(counts[i] for i in members) / len(members) for members in steps.values() for index in members}
    total_p, total_q = sum(p.values()), sum(q.values())
    return sum(p[i] / total_p * np.log(p[i] / total_p / (q[i] / total_q)) for i in inside)


def test_entropy_takes_the_range_with_the_least_divergence() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.cat([torch.randn(20_000, generator=generator).abs(), torch.tensor([14.0])])
    low, high = entropy(seen(values))
    width = 2 * 14.0 / BINS
    candidates = [a * 14.0 for a in np.arange(1, 0.2, -0.01)]
    losses = [divergence(values.numpy(), 0.0, top, width) for top in candidates]
    assert low == 0.0
    assert divergence(values.numpy(), 0.0, high, width) == pytest.approx(min(losses), rel=0.02)
    assert high < 7.0  # the outlier is given up


def test_large_tensors_are_counted_in_runs_at_even_distances() -> None:
    values = torch.randn(40 * SEEN, generator=torch.Generator().manual_seed(0))
    statistics = Statistics()
    statistics.update(values)
    assert statistics.low == float(values.min())
    counted = int(statistics.counts.sum())
    assert SEEN <= counted <= 1.1 * SEEN
    assert counted % RUN == 0
    quantiles = np.interp([0.05, 0.5, 0.95], np.cumsum(statistics.counts) / counted, statistics.centres)
    np.testing.assert_allclose(quantiles, [-1.645, 0, 1.645], atol=0.04)


def test_no_histogram_is_kept_when_no_method_reads_it() -> None:
    statistics = Statistics(counts=False)
    statistics.update(torch.randn(100))
    assert statistics.counts.sum() == 0
    assert statistics.high > 0
