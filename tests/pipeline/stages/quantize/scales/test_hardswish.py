"""The grid of hardswish's input: where it begins, and which tensors get it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import hardswish
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from pipeline.core import Model, TensorSpec
from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.graph.scheme import scheme_of
from pipeline.stages.quantize.scales.annotator import Int8Quantizer
from pipeline.stages.quantize.scales.hardswish import COARSEST, HardswishInputGrid, three_in_whole_steps


def grid(low: float, high: float) -> HardswishInputGrid:
    made = HardswishInputGrid(dtype=torch.int8, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine)
    made.set_range(low, high)
    return made


@given(st.floats(-0.5, 60.0))
def test_three_is_a_whole_number_of_steps_when_the_grid_begins_there(high: float) -> None:
    scale, steps = three_in_whole_steps(high)
    assert abs(scale * steps / 3 - 1) < 2**-11
    assert float(np.float16(scale)) == scale
    assert 255 * scale >= (high + 3) * (1 - 2**-11)
    assert steps >= (1 - COARSEST) * int(min(765 / (high + 3), 255))


@pytest.mark.parametrize("low", [-40.0, -3.0, -2.8])
def test_grid_begins_at_minus_three_when_values_go_that_far(low: float) -> None:
    made = grid(low, 5.0)
    assert made.scale * (-128 - made.zero_point) == pytest.approx(-3, rel=2**-11)
    assert made.scale < 1.12 * 8 / 255


@pytest.mark.parametrize(("low", "high"), [(-1.0, 5.0), (0.0, 0.5), (-3.0, 1000.0)])
def test_grid_is_like_any_other_when_three_would_cost_resolution(low: float, high: float) -> None:
    made = grid(low, high)
    assert made.scale == pytest.approx((high - low) / 255, rel=3e-3)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(4, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


@pytest.mark.parametrize(
    ("function", "chosen"),
    [
        pytest.param(hardswish, True, id="hardswish alone"),
        pytest.param(lambda y: hardswish(y) + y, False, id="a sum reads it too"),
        pytest.param(lambda y: hardswish(torch.cat([y, y.relu()], 1)), False, id="shared with other values"),
        pytest.param(torch.relu, False, id="no hardswish"),
        pytest.param(lambda y: hardswish(y.tanh()) + y, False, id="the grid of tanh is prescribed"),
    ],
)
def test_grid_is_chosen_only_when_hardswish_alone_reads_the_tensor(
    function: Callable[[Tensor], Tensor], chosen: bool
) -> None:
    module = Function(function).eval()
    model = Model(module=module, reference=module, inputs=(TensorSpec(name="x", shape=(4, 6, 6)),))
    graph = canonical_graph(model)
    Int8Quantizer(scheme_of(graph)).annotate(graph)
    annotations = [node.meta[Q_ANNOTATION_KEY] for node in graph.graph.nodes if Q_ANNOTATION_KEY in node.meta]
    makers = {getattr(found.output_qspec, "observer_or_fake_quant_ctr", None) for found in annotations}
    assert (HardswishInputGrid in makers) == chosen
