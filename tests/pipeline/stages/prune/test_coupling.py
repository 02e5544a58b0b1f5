"""Networks as they are commonly written, by what couples their channels: what is pruned, and what is left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from pipeline.core import StageError, TensorSpec
from pipeline.data.open import from_dataset
from pipeline.models.capture import count_macs, example_inputs, plain_kernels
from pipeline.models.load import from_module
from pipeline.models.structure import restore_module, save_module
from pipeline.recipe import PruneConfig
from pipeline.stages.prune import prune
from pipeline.tasks.comparison import sqnr_db
from tests.pipeline.stages.prune.zeroed import make_values_unique, zeroed

IMAGE = (TensorSpec(name="image", shape=(3, 8, 8)),)
PAIR = (*IMAGE, TensorSpec(name="other", shape=(3, 8, 8)))
VECTOR = (TensorSpec(name="x", shape=(8,)),)
VECTORS = (*VECTOR, TensorSpec(name="y", shape=(12,)))
SEQUENCE = (TensorSpec(name="sequence", shape=(6, 8)),)

Forward = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """A network: its inputs, its forward, its layers (built for each test), and what pruning leaves alone.

    Attributes:
        alone: Per layer that must stay, a part of the reason. The head is the output in all of them.
    """

    inputs: tuple[TensorSpec, ...]
    forward: Forward
    layers: Callable[[], dict[str, Any]]
    alone: dict[str, str]

    def module(self) -> nn.Module:
        torch.manual_seed(0)
        network = Network(self.forward)
        for name, part in self.layers().items():
            setattr(network, name, part)
        return network.eval()


class Network(nn.Module):
    """A module whose forward is a function of it and its inputs."""

    def __init__(self, function: Forward) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


CASES: dict[str, Case] = {}


def case(
    name: str, inputs: tuple[TensorSpec, ...], layers: Callable[[], dict[str, Any]], **alone: str
) -> Callable[[Forward], Forward]:
    def register(forward: Forward) -> Forward:
        CASES[name] = Case(inputs, forward, layers, alone)
        return forward

    return register


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def head(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def csp(**sizes: int) -> dict[str, Any]:
    return {
        "stem": conv(3, 32, 1),
        "m": conv(16, 16),
        "n": conv(16, 16),
        "b": conv(64, 16, 1),
        "f": nn.Linear(16, 5),
    } | sizes


@case("C2f: chunk, bottlenecks with shortcuts, and their concatenation", IMAGE, csp)
def _(net: Any, x: Tensor) -> Tensor:
    parts = list(functional.silu(net.stem(x)).chunk(2, 1))
    parts.append(parts[-1] + functional.silu(net.m(parts[-1])))
    parts.append(functional.silu(net.n(parts[-1])))
    return net.f(head(net.b(torch.cat(parts, 1))))


@case("C2f that splits by a size it keeps", IMAGE, lambda: csp(width=16))
def _(net: Any, x: Tensor) -> Tensor:
    parts = list(functional.silu(net.stem(x)).split((net.width, net.width), 1))
    parts.append(functional.silu(net.m(parts[-1])))
    parts.append(functional.silu(net.n(parts[-1])))
    return net.f(head(net.b(torch.cat(parts, 1))))


@case("C2f that splits by constants", IMAGE, csp, stem="without some of its channels the model does not run")
def _(net: Any, x: Tensor) -> Tensor:
    parts = list(functional.silu(net.stem(x)).split((16, 16), 1))
    parts.append(functional.silu(net.m(parts[-1])))
    parts.append(functional.silu(net.n(parts[-1])))
    return net.f(head(net.b(torch.cat(parts, 1))))


@case("GLU", IMAGE, lambda: {"a": conv(3, 32), "b": conv(16, 16), "f": nn.Linear(16, 5)})
def _(net: Any, x: Tensor) -> Tensor:
    return net.f(head(net.b(functional.glu(net.a(x), 1))))


@case("a gate of every other channel", IMAGE, lambda: {"a": conv(3, 32), "b": conv(16, 16), "f": nn.Linear(16, 5)})
def _(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.f(head(net.b(y[:, ::2] * y[:, 1::2])))


@case("pixel shuffle", IMAGE, lambda: {"a": conv(3, 32), "f": conv(8, 3)})
def _(net: Any, x: Tensor) -> Tensor:
    return net.f(functional.pixel_shuffle(net.a(x), 2))


@case("pixel shuffle by views", IMAGE, lambda: {"a": conv(3, 32), "f": conv(8, 3)})
def _(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    n, c, h, w = y.shape
    return net.f(y.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w))


@case("pixel unshuffle", IMAGE, lambda: {"a": conv(3, 8), "b": conv(32, 8), "f": nn.Linear(8, 5)})
def _(net: Any, x: Tensor) -> Tensor:
    return net.f(head(net.b(functional.pixel_unshuffle(net.a(x), 2))))


@case("channel shuffle", IMAGE, lambda: {"a": conv(3, 16), "b": conv(16, 16, 1), "f": nn.Linear(16, 5)})
def _(net: Any, x: Tensor) -> Tensor:
    return net.f(head(net.b(functional.channel_shuffle(net.a(x).relu(), 4))))


@case(
    "ShuffleNet: halves, one of them convolved, shuffled by views",
    IMAGE,
    lambda: {"a": conv(3, 16), "b": conv(8, 8), "f": nn.Linear(16, 5)},
)
def _(net: Any, x: Tensor) -> Tensor:
    y = net.a(x).relu()
    half = y.shape[1] // 2
    y = torch.cat([y[:, :half], net.b(y[:, half:])], 1)
    n, c, h, w = y.shape
    return net.f(head(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)))


@case("flattened channels last", IMAGE, lambda: {"a": conv(3, 16), "b": nn.Linear(16 * 16, 16), "f": nn.Linear(16, 5)})
def _(net: Any, x: Tensor) -> Tensor:
    return net.f(net.b(functional.max_pool2d(net.a(x).relu(), 2).permute(0, 2, 3, 1).flatten(1)))


@case(
    "columns of an image, read by a GRU",
    IMAGE,
    lambda: {"a": conv(3, 8), "r": nn.GRU(64, 16, batch_first=True), "f": nn.Linear(16, 5)},
)
def _(net: Any, x: Tensor) -> Tensor:
    return net.f(net.r(net.a(x).relu().permute(0, 3, 1, 2).flatten(2))[0][:, -1])


@case("one encoder for two inputs", PAIR, lambda: {"a": conv(3, 16), "b": conv(16, 16), "f": nn.Linear(32, 5)})
def _(net: Any, x: Tensor, y: Tensor) -> Tensor:
    return net.f(torch.cat([head(net.b(net.a(image).relu())) for image in (x, y)], 1))


@case("similarity of two inputs", PAIR, lambda: {"a": conv(3, 16), "b": conv(16, 16)})
def _(net: Any, x: Tensor, y: Tensor) -> Tensor:
    first, second = (functional.normalize(head(net.b(net.a(image).relu())), dim=1) for image in (x, y))
    return (first * second).sum(1, keepdim=True)


@case(
    "a convolution that is called again and again",
    IMAGE,
    lambda: {"a": conv(3, 16), "b": conv(16, 16), "f": nn.Linear(16, 5)},
)
def _(net: Any, x: Tensor) -> Tensor:
    return net.f(head(net.b(net.b(net.a(x)).relu()).relu()))


@case(
    "a sum over channels that are zero where they are not",
    IMAGE,
    lambda: {"a": conv(3, 16), "b": conv(16, 16), "f": nn.Linear(64, 5)},
)
def _(net: Any, x: Tensor) -> Tensor:
    return net.f(net.b(net.a(x).relu()).relu().sum(1).flatten(1))


@case(
    "a sum over sigmoids",
    IMAGE,
    lambda: {"a": conv(3, 16), "b": conv(16, 16), "f": nn.Linear(64, 5)},
    b="is not the original with these at zero",
)
def _(net: Any, x: Tensor) -> Tensor:
    return net.f(net.b(net.a(x).relu()).sigmoid().sum(1).flatten(1))


@case(
    "a mean over channels",
    IMAGE,
    lambda: {"a": conv(3, 16), "b": conv(16, 16), "f": nn.Linear(64, 5)},
    b="is not the original with these at zero",
)
def _(net: Any, x: Tensor) -> Tensor:
    return net.f(net.b(net.a(x).relu()).relu().mean(1).flatten(1))


@case(
    "a softmax over channels",
    IMAGE,
    lambda: {"a": conv(3, 16), "b": conv(16, 16), "f": nn.Linear(16, 5)},
    b="_softmax takes all its channels together",
)
def _(net: Any, x: Tensor) -> Tensor:
    return net.f(head(net.b(net.a(x).relu()).softmax(1)))


@case(
    "depthwise with a multiplier",
    IMAGE,
    lambda: {"a": conv(3, 8), "d": conv(8, 24, groups=8), "n": nn.BatchNorm2d(24), "f": nn.Linear(24, 5)},
)
def _(net: Any, x: Tensor) -> Tensor:
    return net.f(head(net.n(net.d(net.a(x).relu())).relu()))


@case("as many groups as outputs", IMAGE, lambda: {"a": conv(3, 32), "d": conv(32, 8, groups=8), "f": nn.Linear(8, 5)})
def _(net: Any, x: Tensor) -> Tensor:
    return net.f(head(net.d(net.a(x).relu())))


@case(
    "grouped transposed convolution",
    IMAGE,
    lambda: {"a": conv(3, 16), "u": nn.ConvTranspose2d(16, 32, 2, 2, groups=4), "f": conv(32, 3)},
)
def _(net: Any, x: Tensor) -> Tensor:
    return net.f(net.u(net.a(x).relu()).relu())


@case(
    "depthwise transposed convolution with a multiplier",
    IMAGE,
    lambda: {"a": conv(3, 8), "u": nn.ConvTranspose2d(8, 16, 2, 2, groups=8), "f": conv(16, 3)},
)
def _(net: Any, x: Tensor) -> Tensor:
    return net.f(net.u(net.a(x).relu()).relu())


def attention() -> dict[str, Any]:
    return {
        "e": nn.Linear(8, 64),
        "qkv": nn.Linear(64, 192),
        "p": nn.Linear(64, 64),
        "f": nn.Linear(64, 5),
        "num_heads": 8,
    }


@case("queries, keys and values of one layer", SEQUENCE, attention)
def _(net: Any, x: Tensor) -> Tensor:
    y = net.e(x)
    q, k, v = net.qkv(y).reshape(len(x), 6, 3, net.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    mixed = functional.scaled_dot_product_attention(q, k, v)
    return net.f((y + net.p(mixed.transpose(1, 2).flatten(2))).mean(1))


@case("queries, keys and values by chunk, and scores by einsum", SEQUENCE, attention)
def _(net: Any, x: Tensor) -> Tensor:
    y = net.e(x)
    q, k, v = (part.unflatten(-1, (net.num_heads, -1)) for part in net.qkv(y).chunk(3, -1))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
    return net.f((y + net.p(torch.einsum("bhqk,bkhd->bqhd", scores, v).flatten(2))).mean(1))


@case(
    "multi-head attention of torch",
    SEQUENCE,
    lambda: {"e": nn.Linear(8, 64), "m": nn.MultiheadAttention(64, 8, batch_first=True), "f": nn.Linear(64, 5)},
)
def _(net: Any, x: Tensor) -> Tensor:
    y = net.e(x)
    return net.f((y + net.m(y, y, y)[0]).mean(1))


@case(
    "attention over pixels, whose heads are cut by the stream's width",
    IMAGE,
    lambda: {"a": conv(3, 16), "qkv": conv(16, 48, 1), "o": conv(16, 16, 1), "b": conv(16, 16), "f": nn.Linear(16, 5)},
    a="does not run", qkv="does not run", o="does not run",
)  # fmt: skip
def _(net: Any, x: Tensor) -> Tensor:
    y = net.a(x).relu()
    n, c, h, w = y.shape
    q, k, v = net.qkv(y).reshape(n, 3, 4, c // 4, h * w).unbind(1)
    scores = (q.transpose(-2, -1) @ k).softmax(-1)
    return net.f(head(net.b(y + net.o((v @ scores.transpose(-2, -1)).reshape(n, c, h, w)))))


def cells(kind: type[nn.Module]) -> Callable[[], dict[str, Any]]:
    return lambda: {"a": nn.Linear(8, 32), "cell": kind(32, 32), "f": nn.Linear(32, 5), "width": 32}


@case("an LSTM cell in a loop", SEQUENCE, cells(nn.LSTMCell))
def _(net: Any, x: Tensor) -> Tensor:
    state = (x.new_zeros(len(x), net.width), x.new_zeros(len(x), net.width))
    for step in x.unbind(1):
        state = net.cell(net.a(step).relu(), state)
    return net.f(state[0])


@case("a GRU cell in a loop, without a first state", SEQUENCE, cells(nn.GRUCell))
def _(net: Any, x: Tensor) -> Tensor:
    state = None
    for step in x.unbind(1):
        state = net.cell(net.a(step).relu(), state)
    return net.f(state)


@case("a cell whose first state has a constant width", SEQUENCE, cells(nn.RNNCell), cell="does not run")
def _(net: Any, x: Tensor) -> Tensor:
    state = torch.zeros(len(x), 32)
    for step in x.unbind(1):
        state = net.cell(net.a(step).relu(), state)
    return net.f(state)


@case(
    "recurrent layers of every kind",
    SEQUENCE,
    lambda: {
        "l": nn.LSTM(8, 16, 2, bidirectional=True, batch_first=True),
        "g": nn.GRU(32, 16, batch_first=True),
        "r": nn.RNN(16, 16, batch_first=True),
        "f": nn.Linear(16, 5),
    },
)
def _(net: Any, x: Tensor) -> Tensor:
    return net.f(net.r(net.g(net.l(x)[0])[0])[0][:, -1])


@case(
    "two vectors of unlike size",
    VECTORS,
    lambda: {"a": nn.Linear(8, 16), "b": nn.Linear(12, 24), "c": nn.Linear(40, 16), "f": nn.Linear(16, 5)},
)
def _(net: Any, x: Tensor, y: Tensor) -> Tensor:
    return net.f(net.c(torch.cat([net.a(x), net.b(y)], 1).relu()))


@case(
    "an outer product",
    VECTORS,
    lambda: {"a": nn.Linear(8, 8), "b": nn.Linear(12, 6), "c": nn.Linear(48, 16), "f": nn.Linear(16, 5)},
    a="merges two axes that both have channels",
    b="merges two axes that both have channels",
)
def _(net: Any, x: Tensor, y: Tensor) -> Tensor:
    return net.f(net.c((net.a(x)[:, :, None] * net.b(y)[:, None, :]).flatten(1)))


@case(
    "a scale of its own for every channel",
    IMAGE,
    lambda: {"a": conv(3, 16), "b": conv(16, 16), "scale": nn.Parameter(torch.rand(16, 1, 1)), "f": nn.Linear(16, 5)},
)
def _(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.f(head(y + net.scale * net.b(y)))


@case(
    "group norm", IMAGE, lambda: {"a": conv(3, 16), "n": nn.GroupNorm(4, 16), "b": conv(16, 16), "f": nn.Linear(16, 5)}
)
def _(net: Any, x: Tensor) -> Tensor:
    return net.f(head(net.b(net.n(net.a(x)).relu())))


@case("patches by unfold", IMAGE, lambda: {"a": conv(3, 8), "b": nn.Linear(32, 16), "f": nn.Linear(16, 5)})
def _(net: Any, x: Tensor) -> Tensor:
    return net.f(net.b(functional.unfold(net.a(x).relu(), 2, stride=2).transpose(1, 2)).mean(1))


@case(
    "a residual of zeros for channels that the shortcut lacks",
    IMAGE,
    lambda: {"a": conv(3, 16), "b": conv(16, 32), "c": conv(32, 32), "f": nn.Linear(32, 5)},
    a="constant_pad_nd adds channels",
    b="joins its channels with values whose number is fixed",
)
def _(net: Any, x: Tensor) -> Tensor:
    y = net.a(x).relu()
    return net.f(head(net.c(net.b(y) + functional.pad(y, (0, 0, 0, 0, 8, 8)))))


@case("tied weights", VECTOR, lambda: {"a": nn.Linear(8, 32)})
def _(net: Any, x: Tensor) -> Tensor:
    return functional.linear(net.a(x).relu(), net.a.weight.t())


@pytest.mark.parametrize("name", CASES)
def test_prune_equals_the_original_with_the_removed_weights_at_zero_when_the_network_has(
    name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    module = case.module()
    make_values_unique(module)
    after = prune(from_module(module, case.inputs), PruneConfig(macs_ratio=0.7, round_to=2))
    samples = example_inputs(case.inputs, 4)
    outputs = double(after.module, samples)
    assert sqnr_db(double(zeroed(module, after.module), samples), outputs) > 120
    reasons = {entry.layer: entry.reason for entry in after.history[-1].skipped}
    assert reasons.keys() - {"f"} == case.alone.keys()
    for layer, reason in case.alone.items():
        assert reason in reasons[layer]
    widths = {entry["layer"]: (entry["before"], entry["after"]) for entry in after.history[-1].details["layers"]}
    assert all(before == left for layer, (before, left) in widths.items() if layer in reasons)
    assert any(before > left for before, left in widths.values())
    save_module(after.module, tmp_path / "module.safetensors")
    assert torch.equal(double(restore_module(case.module(), tmp_path / "module.safetensors"), samples), outputs)


@torch.no_grad()
def double(module: nn.Module, samples: tuple[Tensor, ...]) -> Tensor:
    """Outputs in double precision: some of these networks magnify the rounding of float32."""
    torch.set_default_dtype(torch.float64)
    try:
        return copy.deepcopy(module).double()(*(sample.double() for sample in samples))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm], ids=["parametrization", "hook"])
def test_prune_follows_weight_norm_by_giving_the_length_of_what_is_left_to_its_lengths(norm: Any) -> None:
    torch.manual_seed(0)
    first, second = (norm(conv(inputs, 16)) for inputs in (3, 16))
    module = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    after = prune(from_module(module, IMAGE), PruneConfig(macs_ratio=0.6, round_to=2)).module
    kept = [row for row, bias in enumerate(first.bias.tolist()) if bias in after[0].bias.tolist()]
    rows = [row for row, bias in enumerate(second.bias.tolist()) if bias in after[2].bias.tolist()]
    assert len(kept) < 16
    after(torch.zeros(1, 3, 8, 8))  # the hook computes the weights of what is left
    torch.testing.assert_close(after[0].weight, first.weight[kept])
    torch.testing.assert_close(after[2].weight, second.weight[rows][:, kept])


def test_prune_keeps_the_weights_that_the_older_spectral_norm_gave() -> None:
    torch.manual_seed(0)
    first = nn.utils.spectral_norm(nn.Linear(12, 16)).eval()
    module = nn.Sequential(first, nn.ReLU(), nn.Linear(16, 5)).eval()
    after = prune(from_module(module, [TensorSpec(name="x", shape=(12,))]), PruneConfig(macs_ratio=0.6)).module
    kept = [row for row, bias in enumerate(first.bias.tolist()) if bias in after[0].bias.tolist()]
    assert len(kept) < 16
    x = torch.randn(1, 12)
    torch.testing.assert_close(after[0](x), first(x)[:, kept])


def test_prune_leaves_a_layer_alone_whose_weights_are_divided_by_one_norm() -> None:
    torch.manual_seed(0)
    first = parametrizations.spectral_norm(nn.Linear(12, 16))
    module = nn.Sequential(first, nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
    after = prune(from_module(module, [TensorSpec(name="x", shape=(12,))]), PruneConfig(macs_ratio=0.8, round_to=2))
    assert after.module[0].out_features == 16
    assert after.module[2].out_features < 16


def test_prune_counts_what_torchs_encoder_layer_does_when_it_narrows_it() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True)
    module = nn.Sequential(nn.Linear(8, 16), layer, nn.Flatten(), nn.Linear(6 * 16, 5)).eval()
    stream, tokens = 16, 6
    attention = tokens * (4 * stream * stream + 2 * tokens * stream)
    whole = tokens * 8 * stream + attention + tokens * 2 * stream * 64 + tokens * stream * 5
    assert count_macs(module, SEQUENCE) == whole
    after = prune(from_module(module, SEQUENCE), PruneConfig(macs_ratio=0.6, skip=("0",)))
    assert after.module[1].linear1.out_features < 64
    assert after.history[-1].macs <= 0.6 * whole


def test_prune_compares_encoder_layers_of_torch_when_norms_in_them_lose_channels() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 8, 64, batch_first=True, norm_first=True)
    module = nn.Sequential(nn.Linear(8, 64), layer, nn.Linear(64, 5)).eval()
    make_values_unique(module)
    after = prune(from_module(module, SEQUENCE), PruneConfig(macs_ratio=0.5)).module
    assert after[1].self_attn.embed_dim == after[1].norm1.normalized_shape[0] == 8 * after[1].self_attn.num_heads < 64
    samples = example_inputs(SEQUENCE, 4)
    with torch.no_grad(), plain_kernels():
        expected, found = (double(part, samples) for part in (zeroed(module, after), after))
    assert sqnr_db(expected, found) > 120


def test_prune_is_not_misled_by_a_mask_that_hides_everything() -> None:
    """Attention divides scores by the root of their width: whether that may shrink, only visible tokens tell."""

    def forward(net: Any, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (part.view(len(x), 6, 2, -1).transpose(1, 2) for part in net.qkv(x).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v, mask[:, None, None].bool())
        return net.f(mixed.transpose(1, 2).flatten(2).sum(1))

    torch.manual_seed(0)
    module = Network(forward)
    module.qkv, module.f = nn.Linear(8, 96), nn.Linear(32, 5)
    inputs = (*SEQUENCE, TensorSpec(name="mask", shape=(6,), dtype="int64"))
    with pytest.raises(StageError, match="qkv: without some of its channels its code computes with another number"):
        prune(from_module(module, inputs), PruneConfig(macs_ratio=0.7, round_to=2))


def test_prune_keeps_a_width_that_code_divides_by_when_no_sample_shows_it() -> None:
    """Scores so far apart that softmax selects one token, whatever they are divided by."""

    def forward(net: Any, x: Tensor) -> Tensor:
        q, k = net.q(x * 1e4), net.k(x)
        return net.f((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ net.v(x)).mean(1)

    torch.manual_seed(0)
    module = Network(forward)
    module.q, module.k, module.v, module.f = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 32), nn.Linear(32, 5)
    after = prune(from_module(module, SEQUENCE), PruneConfig(macs_ratio=0.8, round_to=2))
    reasons = {entry.layer: entry.reason for entry in after.history[-1].skipped}
    assert reasons["q"] == "without some of its channels its code computes with another number: 4 becomes 1.414 in div"
    assert after.module.v.out_features < 32


def test_prune_refuses_a_budget_of_macs_when_the_network_has_none() -> None:
    module = Network(lambda net, x: x * net.scale)
    module.scale = nn.Parameter(torch.full((8,), 2.0))
    with pytest.raises(StageError, match="the model has no macs to save"):
        prune(from_module(module, VECTOR), PruneConfig(macs_ratio=0.5))


def test_prune_judges_layers_by_their_inputs_when_they_are_called_by_keyword() -> None:
    torch.manual_seed(0)
    module = Network(lambda net, x: net.f(head(net.a(input=x).relu())))
    module.a, module.f = conv(3, 16), nn.Linear(16, 5)
    plain = Network(lambda net, x: net.f(head(net.a(x).relu())))
    plain.a, plain.f = module.a, module.f
    data = from_dataset(list(torch.randn(8, 3, 8, 8)), IMAGE)
    config = PruneConfig(macs_ratio=0.6, round_to=2, importance="activation")
    found, expected = (prune(from_module(network, IMAGE), config, data).module for network in (module, plain))
    assert torch.equal(found.a.weight, expected.a.weight)


def test_prune_copies_a_module_that_holds_a_tensor_it_computed() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 5)
            self.cache = {"scale": [self.first.bias * 2]}

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).relu()) * self.cache["scale"][0][:5]

    module = Cached()
    after = prune(from_module(module, VECTOR), PruneConfig(macs_ratio=0.5)).module
    assert after.first.out_features == 16
    assert torch.equal(after.cache["scale"][0], module.cache["scale"][0])
