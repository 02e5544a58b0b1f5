"""Rewritings compute the same function; what must not change does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline import from_module
from pipeline.core import Model, StageError, TensorSpec
from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.graph.forms.attention import attention
from pipeline.stages.quantize.graph.forms.hardsigmoid import hardsigmoid
from pipeline.stages.quantize.graph.forms.silu import silu
from tests.networks.architectures import ARCHITECTURES, settle
from tests.networks.architectures import Architecture as Net

GONE = ("batch_norm", "aten.lstm", "aten.gru", "scaled_dot_product", "aten.silu", "aten.hardsigmoid", "aten.div")


def targets(graph: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3", "efficientnet", "densenet", "vit", "gru", "bilstm"])
def test_canonical_graph_computes_the_same_function(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.model()
    graph = canonical_graph(model)
    (batch,) = architecture.samples(6, seed=4).batches(6)
    with torch.no_grad():
        torch.testing.assert_close(graph(*batch.inputs), model.module(*batch.inputs), rtol=1e-4, atol=1e-5)
    assert not [target for target in targets(graph) if any(gone in target for gone in GONE)]


def test_silu_and_hardsigmoid_are_torch_own() -> None:
    x = torch.linspace(-8, 8, 101)
    torch.testing.assert_close(silu(x), F.silu(x))
    torch.testing.assert_close(hardsigmoid(x), F.hardsigmoid(x))


@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_is_torch_own(scale: float | None) -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention(q, k, v, scale=scale), F.scaled_dot_product_attention(q, k, v, scale=scale))


@pytest.mark.parametrize("kind", ["bool", "binary", "finite", "causal"])
def test_masked_attention_is_torch_own(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 5, 8, generator=generator)
    keep = torch.rand(2, 1, 5, 5, generator=generator) > 0.4
    keep[..., 0] = True  # no row without anything to attend to
    offsets = torch.randn(2, 1, 5, 5, generator=generator)
    mask = {
        "bool": keep,
        "binary": torch.where(keep, 0.0, torch.finfo(torch.float32).min),
        "finite": torch.where(keep, offsets, -torch.inf),
        "causal": None,
    }[kind]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=kind == "causal")
    torch.testing.assert_close(attention(q, k, v, mask, is_causal=kind == "causal"), expected)


def test_attention_with_shared_heads_is_taken_apart() -> None:
    class Grouped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True)

    module, x = Grouped(), torch.randn(3, 4, 5, 8)
    graph = canonical_graph(Model(module=module, reference=module, inputs=(TensorSpec(name="x", shape=(4, 5, 8)),)))
    assert not any("scaled_dot_product" in target for target in targets(graph))
    torch.testing.assert_close(graph(x), module(x))


class SharedConvolution(nn.Module):
    """The convolution's result is read by the batch norm and beside it, so the norm cannot fold into it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return torch.relu(self.norm(y)) + y


def test_batch_norm_becomes_a_depthwise_convolution_when_its_input_is_read_elsewhere() -> None:
    net = Net("shared", SharedConvolution, (TensorSpec(name="x", shape=(3, 8, 8)),))
    model = net.model()
    graph = canonical_graph(model)
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model.module(x), rtol=1e-4, atol=1e-5)
    convolutions = [node for node in graph.graph.nodes if node.target == torch.ops.aten.conv2d.default]
    assert [node.args[6:] for node in convolutions] == [(), (6,)]


def test_batch_norm_folds_when_it_follows_a_convolution() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)).eval()
    inputs = (TensorSpec(name="x", shape=(3, 8, 8)),)
    settle(module, Net("x", lambda: module, inputs).samples(4))
    graph = canonical_graph(Model(module=module, reference=module, inputs=inputs))
    assert [target for target in targets(graph) if "sym_size" not in target] == ["aten.conv2d.default"]


class Summed(nn.Module):
    """A convolution or linear layer, a number added to it, and a second reader where asked for."""

    def __init__(self, layer: nn.Module, *, read_twice: bool) -> None:
        super().__init__()
        self.layer, self.read_twice = layer, read_twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        return (y + 3.0).relu() * (y if self.read_twice else 1.5)


@pytest.mark.parametrize("read_twice", [False, True])
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 3, bias=False), nn.Linear(6, 5)], ids=["conv", "no bias", "linear"]
)
def test_number_becomes_part_of_the_bias_only_when_nothing_else_reads_the_convolution(
    layer: nn.Module, read_twice: bool
) -> None:
    module = Summed(layer, read_twice=read_twice).eval()
    graph = canonical_graph(Model(module=module, reference=module, inputs=(TensorSpec(name="x", shape=(4, 6, 6)),)))
    x = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(graph(x), module(x))
    assert ("aten.add.Tensor" in targets(graph)) == read_twice


def test_batch_norm_whose_folding_would_show_is_refused_by_name() -> None:
    """A variance of zero multiplies what float32 rounds off a constant by 10,000."""
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, eps=1e-8), nn.Conv2d(4, 4, 1, bias=False)).eval()
    x = 0.3 + 1e-6 * torch.randn(16, 4, 6, 6)
    with torch.no_grad():
        mean = network[0](x).mean((0, 2, 3))
    network[1].load_state_dict({"running_mean": mean, "running_var": torch.zeros(4)}, strict=False)
    with pytest.raises(StageError, match=r"^1: batch norms cannot be folded"):
        canonical_graph(from_module(network, [TensorSpec(name="x", shape=(4, 6, 6))]), inputs=(x,))


class Turned(nn.Module):
    """Positions as angles, with conversions that torch.export guards by assertions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        speeds = torch.ones(4, dtype=torch.float64).to(torch.float32)
        angles = torch.arange(x.shape[1]).to(torch.float32)[:, None] * speeds
        return x * angles.cos() + x.flip(2) * angles.sin()


def test_tables_are_computed_though_conversions_of_them_are_asserted() -> None:
    module = Turned()
    graph = canonical_graph(Model(module=module, reference=module, inputs=(TensorSpec(name="x", shape=(6, 4)),)))
    assert not {"aten.cos.default", "aten.sin.default", "aten.arange.default"} & set(targets(graph))
    x = torch.randn(2, 6, 4)
    torch.testing.assert_close(graph(x), module(x))


class FlattenedAfterRolling(nn.Module):
    """Tokens as an image: its transposition, which a 1 x 1 convolution and the roll keep, depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image = self.conv(x.transpose(1, 2).reshape(x.shape[0], 8, 2, 3))
        return image.roll((-1, 1), (2, 3)).reshape(x.shape[0], -1).mean(1)


def test_reshape_may_copy_where_convolutions_run_in_another_layout_than_they_were_traced_in() -> None:
    model = from_module(FlattenedAfterRolling().eval(), inputs=[TensorSpec(name="x", shape=(6, 8))])
    x = torch.randn(32, 6, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(canonical_graph(model, inputs=(x,))(x), model.module(x))
