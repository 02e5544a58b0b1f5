"""Scales of products like SiLU's: kernels that round once and kernels that round twice give the same integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from pipeline.core import Model, TensorSpec
from pipeline.data.open import from_dataset
from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.ranges.calibration import Calibration, calibrate
from pipeline.stages.quantize.scales.grids import ActivationGrid, FixedGrid
from pipeline.stages.quantize.scales.products import SelfProduct, moved, round_alike, self_products_of
from pipeline.stages.quantize.scales.sums import sums_of
from pipeline.stages.quantize.simulation import Simulation
from targets.tflite.rounding import once, twice
from tests.pipeline.stages.quantize.scales.test_sums import ties

RANGES = st.tuples(st.floats(-8.0, -0.5), st.floats(2.0, 20.0))


def silu(low: float, high: float) -> SelfProduct:
    """A SiLU whose input spans ``[low, high]``."""
    factor, result = (ActivationGrid(torch.int8, -128, 127, torch.per_tensor_affine) for _ in range(2))
    factor.set_range(low, high)
    result.set_range(-0.28, high)
    prescribed = FixedGrid(scale=1 / 256, zero_point=-128, dtype=torch.int8, quant_min=-128, quant_max=127)
    return SelfProduct(factor, torch.sigmoid, prescribed, result)


def differing(product: SelfProduct) -> int:
    """In how many of the 256 integers the two kinds of kernel differ."""
    integers, factor = product.integers(), np.array(product.unit / product.result.scale)
    return int((once(integers, factor) != twice(integers, factor)).sum())


def test_integers_are_distance_times_rounded_sigmoid_when_computed_by_hand() -> None:
    product = silu(-4.0, 11.9375)  # steps of 1/16, zero at -64
    assert product.factor.scale == 1 / 16
    integers = product.integers()
    assert integers[64] == 0
    assert integers[64 + 16] == 16 * 187  # sigmoid(1) = 0.7311 = 187.15 / 256
    assert integers[64 - 32] == -32 * 31  # sigmoid(-2) = 0.1192 = 30.5 / 256
    assert integers[255] == 191 * 255  # sigmoid(11.9) is 256 / 256, one more than int8 holds
    assert product.unit == 1 / 16 / 256


def test_kernels_agree_on_every_integer_when_scales_are_settled() -> None:
    products = [silu(-2.0, high) for high in np.linspace(4, 8, 50)]
    assert sum(differing(product) > 0 for product in products) > 20
    for product in products:
        round_alike(product)
        assert differing(product) == 0


@given(RANGES)
def test_scale_grows_little_and_never_makes_it_worse_when_ranges_are_any(ends: tuple[float, float]) -> None:
    product = silu(*ends)
    integers, before = product.integers(), product.result.scale
    apart = moved(integers, product.unit / before)
    round_alike(product)
    assert differing(product) <= moved(integers, product.unit / product.result.scale) <= apart
    assert before <= product.result.scale <= before * (1 + 1 / 32)
    assert float(np.float16(product.result.scale)) == product.result.scale


def test_scale_stays_when_kernels_agree_already() -> None:
    product = silu(-3.0, 7.0)
    round_alike(product)
    settled = product.result.scale
    round_alike(product)
    assert product.result.scale == settled


class Activations(nn.Module):
    """A SiLU, a product with its own tanh, a gate, and a SiLU that an addition reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.first(x))
        x = self.second(x)
        x = torch.tanh(x) * x
        x = x * torch.sigmoid(x.mean((2, 3), keepdim=True))
        y = self.third(x)
        return y + F.silu(y)


@pytest.fixture(scope="module", params=[1.0, 1.5, 2.0])
def calibrated(request: pytest.FixtureRequest) -> Calibration:
    torch.manual_seed(0)
    module = Activations().eval()
    for parameter in module.parameters():
        parameter.data *= 4
    return calibrate_on_noise(module, request.param)


def calibrate_on_noise(module: nn.Module, scale: float) -> Calibration:
    spec = TensorSpec(name="image", shape=(3, 8, 8))
    model = Model(module=module, reference=module, inputs=(spec,))
    data = from_dataset(TensorDataset(scale * torch.randn(8, *spec.shape)), (spec,))
    return calibrate(canonical_graph(model), data, batch_size=8)


class ScaledBySoftmax(nn.Module):
    """Each value of a softmax depends on more than one of what it reads."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.softmax(1)


def test_a_product_with_its_own_softmax_is_none_of_them() -> None:
    assert self_products_of(Simulation(calibrate_on_noise(ScaledBySoftmax(), 1.0)).graph) == ()


def test_products_of_a_tensor_with_its_own_function_are_found_and_gates_are_not(calibrated: Calibration) -> None:
    found = self_products_of(Simulation(calibrated).graph)
    assert [str(product.function) for product in found] == [
        "aten.sigmoid.default",
        "aten.tanh.default",
        "aten.sigmoid.default",
    ]
    assert len({product.result for product in found}) == 3


def test_neither_kernels_nor_ties_are_left_when_an_addition_reads_a_product(calibrated: Calibration) -> None:
    graph = Simulation(calibrated).configure("minmax", "none")
    products, (addition,) = self_products_of(graph), sums_of(graph)
    assert products[2].result in addition.terms
    assert [differing(product) for product in products] == [0, 0, 0]
    assert ties(*(grid.scale for grid in (*addition.terms, addition.total))) == 0
