"""Every form on networks that people write: the canonical graph is the module, and its operators have kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from pipeline import TensorSpec, from_module
from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.graph.scheme import scheme_of
from pipeline.tasks.prediction import predictor

aten = torch.ops.aten


def canonical(module: nn.Module, *inputs: Tensor) -> GraphModule:
    """The canonical graph, once torch itself has compared it with the module."""
    specs = [
        TensorSpec(name=f"x{index}", shape=tuple(value.shape[1:]), dtype=str(value.dtype).removeprefix("torch."))
        for index, value in enumerate(inputs)
    ]
    graph = canonical_graph(from_module(module.eval(), specs), inputs=inputs)
    for expected, found in zip(predictor(module)(inputs), predictor(graph)(inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    return graph


def operators(graph: GraphModule) -> list[object]:
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


def settled(norm: nn.Module) -> nn.Module:
    """A batch norm with the statistics of a trained network, not zeros and ones."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator))  # type: ignore[operator, union-attr]
        norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) + 0.3)  # type: ignore[operator, union-attr]
        norm.weight.copy_(torch.rand(norm.num_features, generator=generator) + 0.5)  # type: ignore[operator, union-attr]
    return norm


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class TwoLevels(nn.Module):
    """A head that two levels share, each with a batch norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList([settled(nn.BatchNorm2d(4)), nn.BatchNorm2d(4)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.norms[0](self.conv(x)), self.norms[1](self.conv(F.max_pool2d(x, 2)))


class OneTwice(nn.Module):
    """One convolution's result, read by two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(4, 4, 1), settled(nn.BatchNorm2d(4)), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.first(y) - self.second(y)


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(TwoLevels(), id="a shared convolution with a norm per level"),
        pytest.param(OneTwice(), id="two norms of one result"),
        pytest.param(nn.Sequential(nn.ConvTranspose2d(4, 8, 2, 2, groups=2), settled(nn.BatchNorm2d(8))), id="grouped"),
        pytest.param(
            nn.Sequential(nn.ConvTranspose2d(4, 4, 2, 2, groups=4), settled(nn.BatchNorm2d(4))), id="depthwise"
        ),
        pytest.param(nn.Sequential(settled(nn.BatchNorm2d(4)), nn.Conv2d(4, 5, 1)), id="before a convolution"),
        pytest.param(nn.Sequential(nn.ReLU(), settled(nn.BatchNorm2d(4)), settled(nn.BatchNorm2d(4))), id="in a row"),
    ],
)
def test_batch_norms_are_gone_and_the_function_stays_when_they_fold(module: nn.Module) -> None:
    graph = canonical(module, torch.randn(4, 4, 8, 8))
    assert not any("batch_norm" in str(operator) for operator in operators(graph))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        pytest.param(nn.Sequential(nn.Linear(6, 5), settled(nn.BatchNorm1d(5))), (6,), id="features"),
        pytest.param(nn.Sequential(nn.Linear(6, 5), settled(nn.BatchNorm1d(3))), (3, 6), id="norm over another axis"),
        pytest.param(nn.Sequential(nn.ReLU(), settled(nn.BatchNorm1d(6))), (6,), id="no layer before it"),
        pytest.param(nn.Sequential(settled(nn.BatchNorm3d(2)), nn.ReLU()), (2, 3, 4, 4), id="volumes"),
    ],
)
def test_batch_norms_are_gone_when_there_is_no_convolution_of_their_rank(
    module: nn.Module, shape: tuple[int, ...]
) -> None:
    graph = canonical(module, torch.randn(4, *shape))
    assert not any("batch_norm" in str(operator) for operator in operators(graph))


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(nn.Conv2d(3, 4, 3, padding="same"), id="same"),
        pytest.param(nn.Conv2d(3, 4, 3, padding="same", dilation=2), id="same, dilated"),
        pytest.param(nn.Conv2d(3, 4, 3, padding="valid", stride=2), id="valid"),
        pytest.param(nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3)), id="ZeroPad2d"),
        pytest.param(nn.Sequential(nn.ZeroPad2d((2, 2, 1, 1)), nn.Conv2d(3, 4, 3, padding=1)), id="on top of its own"),
    ],
)
def test_padding_is_a_setting_of_the_convolution_when_both_sides_are_alike(module: nn.Module) -> None:
    assert operators(canonical(module, torch.randn(4, 3, 9, 8))) == [aten.conv2d.default]


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(nn.Conv2d(3, 4, 4, padding="same"), id="same, even kernel"),
        pytest.param(nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 4, 3, stride=2)), id="one side"),
        pytest.param(nn.Sequential(nn.ConstantPad2d(1, -2.0), nn.Conv2d(3, 4, 3)), id="another value"),
        pytest.param(nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3)), id="reflect"),
    ],
)
def test_padding_stays_an_operator_when_a_convolution_cannot_hold_it(module: nn.Module) -> None:
    assert len(operators(canonical(module, torch.randn(4, 3, 9, 8)))) > 1


def test_computed_weights_become_parameters_when_they_depend_on_parameters_alone() -> None:
    normed = parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    graph = canonical(
        nn.Sequential(normed, nn.ReLU(), parametrizations.spectral_norm(nn.Conv2d(8, 4, 1))), torch.randn(4, 3, 8, 8)
    )
    assert operators(graph) == [aten.conv2d.default, aten.relu.default, aten.conv2d.default]
    assert scheme_of(graph).skipped == ()


class Cells(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(6, 5), nn.GRUCell(6, 5), nn.RNNCell(6, 5, nonlinearity="relu")
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        hidden = cell = torch.zeros(x.shape[0], 5)
        for step in range(x.shape[1]):
            if self.kind == "lstm":
                hidden, cell = self.lstm(x[:, step], (hidden, cell))
            else:
                hidden = getattr(self, self.kind)(x[:, step], hidden)
        return hidden


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_cells_are_linear_layers_with_kernels(kind: str) -> None:
    graph = canonical(Cells(kind), torch.randn(4, 3, 6))
    assert not any("cell" in str(operator) for operator in operators(graph))
    assert scheme_of(graph).skipped == ()


def infinite(scores: Tensor, visible: Tensor) -> Tensor:
    return scores.masked_fill(~visible, float("-inf"))


def lowest(scores: Tensor, visible: Tensor) -> Tensor:
    return scores + (1 - visible.float()) * torch.finfo(torch.float32).min


def ten_thousand(scores: Tensor, visible: Tensor) -> Tensor:
    return scores + (1 - visible.float()) * -10_000.0


def causal(scores: Tensor, _: Tensor) -> Tensor:
    return scores + torch.triu(torch.full((6, 6), float("-inf")), 1)


def subtracted(scores: Tensor, visible: Tensor) -> Tensor:
    """As GPT-2's first code has it."""
    return scores * visible - 1e4 * (1 - visible.float())


def hundred(scores: Tensor, visible: Tensor) -> Tensor:
    """As Swin has it: two views around a mask of -100."""
    return (scores.view(-1, 1, 2, 6, 6) + (1 - visible.float()).view(-1, 1, 1, 1, 6) * -100.0).view(-1, 2, 6, 6)


def two_masks(scores: Tensor, visible: Tensor) -> Tensor:
    return scores + (1 - visible.float()) * -1e4 + torch.triu(torch.full((6, 6), -1e4), 1)


def floored(scores: Tensor, visible: Tensor) -> Tensor:
    return (scores + (1 - visible.float()) * -1e9).clamp(min=-1e4)


def logarithm(scores: Tensor, visible: Tensor) -> Tensor:
    return scores + (visible.float() + 1e-45).log()


def product_with_a_sum(scores: Tensor, visible: Tensor) -> Tensor:
    """As torch's own attention writes it, where it returns weights: ``baddbmm``."""
    rows = scores.flatten(0, 1)
    mask = ((1 - visible.float()) * -1e4).expand(scores.shape).flatten(0, 1)
    return torch.baddbmm(mask, rows, torch.eye(6).expand(rows.shape)).view(scores.shape)


class Attention(nn.Module):
    def __init__(self, mask: Callable[[Tensor, Tensor], Tensor] | None) -> None:
        super().__init__()
        self.qkv, self.out, self.mask = nn.Linear(8, 48), nn.Linear(16, 5), mask

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if self.mask is None:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None, None, :])
        else:
            y = torch.softmax(self.mask(q @ k.transpose(-2, -1) / 8**0.5, visible[:, None, None, :]), -1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    "mask",
    [
        infinite,
        lowest,
        ten_thousand,
        causal,
        subtracted,
        hundred,
        two_masks,
        floored,
        logarithm,
        product_with_a_sum,
        None,
    ],
)
def test_no_masked_score_is_put_on_a_grid(mask: Callable[[Tensor, Tensor], Tensor] | None) -> None:
    visible = torch.ones(4, 6, dtype=torch.bool)
    visible[:, 4:] = False
    graph = canonical(Attention(mask), torch.randn(4, 6, 8), visible)
    (softmax,) = (node for node in graph.graph.nodes if node.target == aten.softmax.int)
    (scores,) = softmax.all_input_nodes
    assert scores.name not in scheme_of(graph).roots


def filled(scores: Tensor, visible: Tensor) -> Tensor:
    return scores.masked_fill(~visible, -1e5)


@pytest.mark.parametrize("mask", [ten_thousand, subtracted, two_masks, filled, None])
def test_a_mask_that_scores_can_reach_stays_what_it_is(mask: Callable[[Tensor, Tensor], Tensor] | None) -> None:
    """Scores that lie 10,000 apart are seen through a mask of -10,000, also where the first samples do not show it."""
    attention = Attention(mask)
    visible = torch.ones(4, 6, dtype=torch.bool)
    visible[:, 4:] = False
    x = torch.randn(4, 6, 8)
    with torch.no_grad():
        attention.qkv.weight.mul_(100)
    graph = canonical(attention, x, visible)
    torch.testing.assert_close(graph(6 * x, visible), attention(6 * x, visible))


def test_a_query_that_sees_nothing_gives_what_torch_gives() -> None:
    visible = torch.ones(4, 6, dtype=torch.bool)
    visible[::2] = False
    canonical(Attention(None), torch.randn(4, 6, 8), visible)


@pytest.mark.parametrize("mask", [ten_thousand, subtracted, two_masks, logarithm])
def test_a_row_that_a_finite_mask_hides_as_a_whole_keeps_its_scores(
    mask: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Softmax of scores that are all 10,000 lower is what it was: no sample of those seen at first has such a row."""
    attention = Attention(mask)
    graph = canonical(attention, torch.randn(4, 6, 8), torch.ones(4, 6, dtype=torch.bool).tril(4)[:, :6])
    x, hidden = torch.randn(4, 6, 8), torch.zeros(4, 6, dtype=torch.bool)
    torch.testing.assert_close(graph(x, hidden), attention(x, hidden), rtol=1e-2, atol=1e-2)
