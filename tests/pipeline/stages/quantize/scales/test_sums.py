"""Scales of additions: no sum of two int8 tensors is midway between two integers of its own grid."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pipeline.core import Model, TensorSpec
from pipeline.data.open import from_dataset
from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.ranges.calibration import Calibration, calibrate
from pipeline.stages.quantize.scales.grids import ActivationGrid
from pipeline.stages.quantize.scales.numbers import affine_parameters
from pipeline.stages.quantize.scales.sums import Sum, avoid_ties, sums_of, tie_free
from pipeline.stages.quantize.simulation import Simulation, convert
from tests.pipeline.stages.quantize.prepared import prepare

DISTANCES = np.arange(-255, 256)  # of an integer from its zero point


def ties(first: float, second: float, total: float) -> int:
    """How many of all sums lie midway between two integers of the total's grid, in exact arithmetic."""
    unit = math.lcm(*(Fraction(scale).denominator for scale in (first, second, total)))
    a, b, c = (int(Fraction(scale) * unit) for scale in (first, second, total))
    doubled = 2 * (a * DISTANCES[:, None].astype(object) + b * DISTANCES[None].astype(object))
    return int((doubled % (2 * c) == c).sum())


def grid(low: float, high: float) -> ActivationGrid:
    made = ActivationGrid(dtype=torch.int8, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine)
    made.set_range(low, high)
    return made


def test_one_sum_in_thousands_is_a_tie_when_scales_only_are_short() -> None:
    assert ties(*(affine_parameters(0.0, high)[0] for high in (1.7, 2.0, 3.1))) > 50


@given(st.tuples(*[st.floats(0.2, 1.0)] * 3))
def test_no_sum_is_a_tie_when_scales_are_tie_free(shares: tuple[float, float, float]) -> None:
    scales = [affine_parameters(0.0, 20 * share)[0] for share in shares]
    found = tie_free(scales, [False, False, True])
    assert ties(found[0], found[1], found[2]) == 0
    for before, after in zip(scales, found, strict=True):
        assert before <= after < before * (1 + 1 / 32)
        assert float(np.float16(after)) == after


def test_scales_move_by_hand_computed_steps_when_they_belong_to_one_sum() -> None:
    # 0.75 has the exponent 0, so the unit is 2^-11: 1024, 512 and 1536 of it. Of the odd ones 1539 is the first whose
    # reciprocal FP32 holds to 2^-25.
    assert tie_free([0.5, 0.25, 0.75], [False, False, True]) == [0.5, 0.25, 1539 / 2048]


def test_scale_has_no_more_bits_than_any_other_when_it_is_just_below_a_power_of_two() -> None:
    assert tie_free([2046 / 2048, 0.5], [True, False]) == [2047 / 2048, 0.5]


def test_scale_stays_when_it_is_minute_beside_the_others() -> None:
    assert tie_free([1.0, 0.0123], [True, False])[1] == 0.0123


@given(st.lists(st.tuples(st.floats(1e-4, 10.0), st.booleans()), min_size=1))
def test_no_scale_grows_by_more_than_a_thirty_second_when_scales_are_any(group: list[tuple[float, bool]]) -> None:
    scales = [affine_parameters(0.0, 255 * scale)[0] for scale, _ in group]
    for before, after in zip(scales, tie_free(scales, [total for _, total in group]), strict=True):
        assert before <= after <= before * (1 + 1 / 32)


def test_additions_are_treated_together_when_they_share_a_grid() -> None:
    trunk, branch, other, first, second = (grid(-high, high) for high in (1.0, 0.7, 2.3, 1.6, 3.7))
    avoid_ties([Sum((trunk, branch), first), Sum((first, other), second)])
    assert ties(trunk.scale, branch.scale, first.scale) == 0
    assert ties(first.scale, other.scale, second.scale) == 0


@given(st.tuples(*[st.floats(0.2, 0.9)] * 3), st.tuples(*[st.integers(0, 9)] * 3))
def test_no_sum_is_a_tie_when_scales_have_grown_as_they_may(
    shares: tuple[float, float, float], times: tuple[int, int, int]
) -> None:
    grids = [grid(0.0, 20 * share) for share in shares]
    growth = avoid_ties([Sum((grids[0], grids[1]), grids[2])])
    assert ties(*(each.scale + count * growth[each] for each, count in zip(grids, times, strict=True))) == 0


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 2.0), (-5.0, 0.0)])
def test_range_keeps_its_lower_end_when_a_grid_is_widened(low: float, high: float) -> None:
    wide = grid(low, high)
    step = wide.scale * 1.25
    wide.widen(step)
    assert wide.scale == step
    assert abs((-128 - wide.zero_point) * step - low) <= step / 2
    assert (127 - wide.zero_point) * step >= high


class Residual(nn.Module):
    """Two additions in a row, the first with a clamp behind it, and a difference."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x + self.first(x))
        z = y + self.second(y)
        return z - self.third(z)


@pytest.fixture(scope="module")
def calibrated() -> Calibration:
    torch.manual_seed(0)
    spec = TensorSpec(name="image", shape=(3, 8, 8))
    module = Residual().eval()
    model = Model(module=module, reference=module, inputs=(spec,))
    data = from_dataset(TensorDataset(torch.randn(8, *spec.shape)), (spec,))
    return calibrate(canonical_graph(model), data, batch_size=8)


def test_sums_of_finds_every_addition_when_one_has_a_clamp_behind_it(calibrated: Calibration) -> None:
    found = sums_of(Simulation(calibrated).graph)
    assert len(found) == 3
    assert len({addition.total for addition in found}) == 3
    assert found[1].terms[0] is found[0].total
    assert found[2].terms[0] is found[1].total


def test_no_addition_of_a_program_can_tie_when_it_is_quantized(calibrated: Calibration) -> None:
    program = convert(prepare(calibrated, method="minmax", bias_correction="none"))
    found = 0
    for node in program.graph.nodes:
        if str(node.target) in ("aten.add.Tensor", "aten.sub.Tensor"):
            reader = next(iter(node.users))
            reader = next(iter(reader.users)) if "relu" in str(reader.target) else reader
            first, second = (source.args[1] for source in node.args)
            assert ties(first, second, reader.args[1]) == 0
            found += 1
    assert found == 3
