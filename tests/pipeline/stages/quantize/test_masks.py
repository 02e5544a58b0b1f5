"""Masks in front of softmax: a program sees no masked token, whatever form the mask has."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import Budget, QuantizeConfig, TensorSpec, from_dataset, from_module, quantize
from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.graph.nodes import by_key
from pipeline.stages.quantize.graph.scores import masked_scores
from pipeline.tasks.comparison import sqnr_db

TOKENS, WIDTH = 6, 8


def visible_tokens(count: int) -> Tensor:
    return torch.arange(TOKENS) < torch.randint(1, TOKENS + 1, (count,), generator=torch.manual_seed(1))[:, None]


class TorchAttention(nn.Module):
    """torch's own, with a mask per sample and one for all."""

    def __init__(self, *, causal: bool, weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.causal, self.weights = causal, weights

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        later = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1) if self.causal else None
        return self.attention(x, x, x, key_padding_mask=~visible, attn_mask=later, need_weights=self.weights)[0]


class Scores(nn.Module):
    """Attention with one head, and a mask that no form recognises."""

    def __init__(self, mask: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mask = mask

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).mT / WIDTH**0.5
        return self.mask(scores, visible[:, None].float()).softmax(-1) @ self.value(x)


def weighted(scores: Tensor, visible: Tensor) -> Tensor:
    return torch.add(scores, 1 - visible, alpha=-1e4)


def chosen(scores: Tensor, visible: Tensor) -> Tensor:
    return torch.where(visible.bool(), scores, scores - 1e4)


def raised(scores: Tensor, visible: Tensor) -> Tensor:
    return torch.max(scores + (1 - visible) * -1e9, torch.tensor(-3e38))


def filled_twice(scores: Tensor, visible: Tensor) -> Tensor:
    return scores.masked_fill(torch.ones(TOKENS, TOKENS).tril() == 0, float("-inf")).masked_fill(visible == 0, -1e9)


@pytest.mark.parametrize(
    "module",
    [
        lambda: TorchAttention(causal=False, weights=False),
        lambda: TorchAttention(causal=False, weights=True),
        lambda: TorchAttention(causal=True, weights=False),
        lambda: TorchAttention(causal=True, weights=True),
        *(lambda mask=mask: Scores(mask) for mask in (weighted, chosen, raised, filled_twice)),
    ],
    ids=["padding", "with weights", "causal", "causal with weights", "weighted", "chosen", "raised", "filled twice"],
)
def test_a_program_sees_no_masked_token(module: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net, visible, x = module().eval(), visible_tokens(32), torch.randn(32, TOKENS, WIDTH)
    specs = [
        TensorSpec(name="x", shape=(TOKENS, WIDTH)),
        TensorSpec(name="visible", shape=(TOKENS,), dtype="bool"),
    ]
    samples = from_dataset(list(zip(x, visible, strict=True)), specs)
    config, budget = QuantizeConfig(observers=("minmax",)), Budget(metric="agreement", max_drop=1)
    program = quantize(from_module(net, specs), config, samples, held_out=samples, budget=budget).module
    changed = torch.where(visible[..., None], x, 0.5)
    with torch.no_grad():
        assert sqnr_db(net(x, visible), program(x, visible)) > 25
        assert torch.equal(program(changed, visible)[visible], program(x, visible)[visible])


class AllMasked(nn.Module):
    """torch's attention with an additive mask, which may mask a sample as a whole."""

    def __init__(self, masked: float) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.masked = masked

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        mask = torch.where(visible[:, None], 0.0, self.masked)
        return F.scaled_dot_product_attention(*(projection(x) for projection in self.projections), attn_mask=mask)


@pytest.mark.parametrize("masked", [float("-inf"), torch.finfo(torch.float32).min, -1e9])
def test_a_sample_without_a_token_gives_what_torch_gives_when_the_mask_is_added(masked: float) -> None:
    torch.manual_seed(0)
    net, visible, x = AllMasked(masked).eval(), visible_tokens(32), torch.randn(32, TOKENS, WIDTH) + 1
    visible[3::4] = False
    specs = [
        TensorSpec(name="x", shape=(TOKENS, WIDTH)),
        TensorSpec(name="visible", shape=(TOKENS,), dtype="bool"),
    ]
    samples = from_dataset(list(zip(x, visible, strict=True)), specs)
    config, budget = QuantizeConfig(observers=("minmax",)), Budget(metric="agreement", max_drop=1)
    model = quantize(from_module(net, specs, samples=samples), config, samples, held_out=samples, budget=budget)
    assert "no integer kernel for aten.scaled_dot_product_attention" not in str(model.history[-1].skipped)
    with torch.no_grad():
        expected, got = net(x, visible), model.module(x, visible)
    assert sqnr_db(expected[3::4], got[3::4]) > 25 or torch.equal(expected[3::4], got[3::4])
    assert sqnr_db(expected, got) > 25


def test_scores_that_many_paths_lead_to_are_looked_at_once() -> None:
    """Two to the power of 30 paths: one visit per operator takes milliseconds, one per path years."""

    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(30):
                x = x + x * 0.5
            return x.softmax(-1)

    graph = canonical_graph(from_module(Doubling(), [TensorSpec(name="x", shape=(4,))]))
    spans = dict.fromkeys(by_key(graph), 2000.0)
    assert len(masked_scores(graph, spans)) == 60
    assert masked_scores(graph, {}) == {}
