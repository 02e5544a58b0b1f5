"""What is not a function of the sample is refused by name; what is one passes, whatever its code looks like."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core import StageError
from pipeline.models.function import require_function


class Dropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)  # training=True by default


class DroppingInside(nn.Module):
    """The layer behind the dropout gives other results because it takes others: it is not to blame."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.dropout(x, 0.5))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        result = x if self.last is None else x + self.last
        self.last = x
        return result


class AcrossTheBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, 0)


class Asserting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert len(x) > 1, "give two samples or more"
        return x


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        pytest.param(nn.Sequential(nn.Linear(4, 4), Dropping()), "module '1' gives another result", id="dropout"),
        pytest.param(DroppingInside(), "^DroppingInside: forward gives another result", id="functional dropout"),
        pytest.param(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5).train()), "module '1' drops values", id="left on"),
        pytest.param(nn.BatchNorm1d(4, track_running_stats=False).eval(), "of the batch", id="no statistics"),
        pytest.param(nn.Sequential(Counting()), "forward changes the buffer '0.calls'", id="buffer"),
        pytest.param(Remembering(), "another result the second time", id="cache"),
        pytest.param(AcrossTheBatch(), "depend on the other samples", id="softmax over the batch"),
        pytest.param(Asserting(), "not with one: give two samples or more", id="batch size asserted"),
    ],
)
def test_a_module_that_is_no_function_of_the_sample_is_refused_by_name(module: nn.Module, problem: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(StageError, match=problem):
        require_function(module, (torch.randn(4, 4),))


class OneAtATime(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(1, 2, 2).mean(2)


class Masked(nn.Module):
    """Gives NaN for a sample without any token, every time alike."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * (x > 0)).sum(1) / (x > 0).sum(1)


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).eval(), id="in eval mode"),
        pytest.param(OneAtATime(), id="one sample at a time"),
        pytest.param(Masked(), id="NaN"),
    ],
)
def test_a_function_of_the_sample_passes_and_stays_as_it_is(module: nn.Module) -> None:
    torch.manual_seed(0)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    inputs = torch.randn(4, 4)
    inputs[1] = -1.0
    require_function(module, (inputs,))
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
