"""Divisors and reciprocals stay in float: an integer grid rounds small values to zero beside one large one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline import Budget, QuantizeConfig, TensorSpec, from_dataset, from_module, quantize
from pipeline.tasks.comparison import sqnr_db


class Norm(nn.Module):
    """A norm over the channels behind a convolution, as people write it by hand; some positions hold zeros alone."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.form = nn.Conv2d(3, 8, 1, bias=False), form

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        variance = y.pow(2).mean(1, keepdim=True) + 1e-6
        match self.form:
            case "root":
                return y / torch.sqrt(variance)
            case "half a power":
                return y / variance**0.5
            case "reciprocal root":
                return y * torch.rsqrt(variance)
            case "negative power":
                return y * variance**-0.5
            case "reciprocal, expanded":
                return y * (1 / variance.sqrt()).expand_as(y)
        return y * variance.log().neg().mul(0.5).exp()


@pytest.mark.parametrize(
    "form", ["root", "half a power", "reciprocal root", "negative power", "reciprocal, expanded", "logarithm"]
)
def test_norm_by_hand_is_as_precise_as_its_inputs(form: str) -> None:
    module, specs = Norm(form).eval(), [TensorSpec(name="x", shape=(3, 6, 6))]
    torch.manual_seed(1)
    x = torch.randn(32, 3, 6, 6) * torch.tensor([0, 0.3, 0.5, 1, 2, 3])
    samples = from_dataset([(each,) for each in x], specs)
    made = quantize(
        from_module(module, specs), QuantizeConfig(observers=("minmax",)), samples, budget=Budget(metric="agreement")
    )
    with torch.no_grad():
        assert sqnr_db(module(x), made.module(x)) > 20
    assert any("zero" in entry.reason for entry in made.history[-1].skipped)
    assert made.history[-1].details["int8_macs_ratio"] == 1
