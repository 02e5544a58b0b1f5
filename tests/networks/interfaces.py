"""Networks whose interface, parts or values are odd: what users write, and what becomes of it.

Each is right, so that its outputs are those of the user's forward, sample by sample; or refused, in a message that says
what is wrong and how to mend it.
"""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, rnn

from pipeline.core import TensorSpec
from pipeline.core.arrays import Array

Heads = namedtuple("Heads", "logits features")


@dataclass
class Detection:
    boxes: Tensor
    scores: Tensor
    loss: Tensor | None = None


def spec(name: str, *shape: int, dtype: str = "float32", **more: Any) -> TensorSpec:
    return TensorSpec.model_validate({"name": name, "shape": shape, "dtype": dtype, **more})


@dataclass(frozen=True)
class Case:
    """A network, and what becomes of it.

    Attributes:
        values: Samples of an input by its name, where they are not standard normal numbers.
        refused: The message, as a regular expression; None where the network is right.
        names: The names of its outputs.
        outputs: Names that the user gives to the outputs.
    """

    build: Callable[[], nn.Module]
    inputs: tuple[TensorSpec, ...] = (spec("x", 6),)
    values: Mapping[str, Array] = field(default_factory=dict)
    refused: str | None = None
    names: tuple[str, ...] = ("output",)
    outputs: tuple[str, ...] = ()


class Net(nn.Module):
    """One linear layer, and a function of it and of the input."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def net(function: Callable[[Any, Tensor], Any], **parts: Callable[[], Any]) -> Callable[[], nn.Module]:
    return lambda: Net(function, **{name: make() for name, make in parts.items()})


class Variadic(Net):
    def forward(self, *xs: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc(xs[0]) + self.fc(xs[1])


class KeywordOnly(Net):
    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc(x) * scale[:, None]


class Keywords(Net):
    def forward(self, **given: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc(given["x"]) - self.fc(given["y"])


class Defaults(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:  # type: ignore[override]
        y = self.fc(x)
        y = y if mask is None else y * mask
        return y if bias is None else y + bias


class Pooled(nn.Module):
    """The mean over the tokens that are not masked."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(50, 6), nn.Linear(6, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        weights = mask.unsqueeze(-1).float()
        return (self.fc(self.embedding(ids)) * weights).sum(1) / weights.sum(1)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 4, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.lstm(packed)[1][0][-1]


class LastStep(nn.Module):
    """The last step before the padding, read by its index."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.fc(x[torch.arange(x.shape[0]), lengths - 1])


class Autocast(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.fc(x).float()


class OneAtATime(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.view(1, 6)).view(4)


class Step(Net):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc(x) * t[:, None]


class Cast(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.float())


class Recorded(nn.Module):
    """Features by a bound method as hook, which a copy binds to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(6, 6), nn.Linear(6, 4)
        self.body.register_forward_hook(self.keep)
        self.features: dict[str, Tensor] = {}

    def keep(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.features["body"] = output

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x)) + self.features["body"][:, :4]


def hooked_by_variable() -> nn.Module:
    module = Recorded()
    module.body._forward_hooks = OrderedDict()
    module.body.register_forward_hook(lambda _m, _i, output: module.features.update(body=output))
    return module


def doubled_by_hook() -> nn.Module:
    module = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    module[0].register_forward_hook(lambda _m, _i, output: output * 2)
    return module


def forward_replaced() -> nn.Module:
    module = Net(lambda s, x: s.fc(x))
    module.forward = lambda x: module.fc(x).relu()  # type: ignore[method-assign]
    return module


def computed_tensor() -> nn.Module:
    module = Net(lambda s, x: s.fc(x) * s.scale)
    module.scale = module.fc.weight.mean() * 3
    return module


def listed() -> nn.Module:
    module = Net(lambda s, x: s.both[0](x))
    module.both = [module.fc]
    return module


def old_weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 4)))


def lazy(run: bool) -> nn.Module:
    module = nn.Sequential(nn.LazyLinear(4), nn.ReLU())
    if run:
        module(torch.zeros(1, 6))
    return module


def dynamically_quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(6, 4)), {nn.Linear})


IDS = torch.arange(40).reshape(8, 5).numpy() % 50
MASK = (torch.arange(5) < torch.tensor([5, 1, 2, 3, 4, 5, 1, 2])[:, None]).long().numpy()
LENGTHS = torch.tensor([5, 1, 2, 3, 4, 5, 1, 2]).numpy()
TWO = (spec("x", 6), spec("y", 6))
SEQUENCE = (spec("x", 5, 6),)
IMAGE = (spec("x", 3, 8, 8),)
IMAGE_NET = net(lambda s, x: s.conv(x), conv=lambda: nn.Conv2d(3, 4, 3))

CASES: dict[str, Case] = {
    # what forward returns
    "tensor": Case(net(lambda s, x: s.fc(x))),
    "tuple": Case(net(lambda s, x: (s.fc(x), x * 2)), names=("output", "output_1")),
    "list": Case(net(lambda s, x: [s.fc(x), x * 2]), names=("output", "output_1")),
    "named tuple": Case(net(lambda s, x: Heads(s.fc(x), x * 2)), names=("logits", "features")),
    "dataclass with None": Case(net(lambda s, x: Detection(s.fc(x), x.sum(1))), names=("boxes", "scores")),
    "dictionary": Case(net(lambda s, x: {"out": s.fc(x), "aux": x * 2}), names=("out", "aux")),
    "ordered dictionary": Case(net(lambda s, x: OrderedDict(b=s.fc(x), a=x * 2)), names=("b", "a")),
    "key is no name": Case(net(lambda s, x: {"box es/0": s.fc(x), "1": x * 2}), names=("box_es_0", "output_1")),
    "key is a type": Case(net(lambda s, x: {"tensor": s.fc(x)}), names=("tensor_output",)),
    "keys become equal": Case(net(lambda s, x: {"a b": s.fc(x), "a_b": x * 2}), names=("a_b", "a_b_")),
    "key is an input's name": Case(net(lambda s, x: {"x": s.fc(x)}), names=("x_output",)),
    "nested": Case(
        net(lambda s, x: {"fpn": [s.fc(x), (x * 2, None)], "top": x * 3}), names=("fpn_0", "fpn_1_0", "top")
    ),
    "values and indices": Case(net(lambda s, x: s.fc(x).max(1)), names=("output", "output_1")),
    "nested tuple of a recurrent layer": Case(
        lambda: nn.LSTM(6, 4, batch_first=True), SEQUENCE, names=("output", "output_1", "output_2")
    ),
    "batch on axis 1": Case(net(lambda s, x: s.fc(x).T.contiguous())),
    "squeezed": Case(net(lambda s, x: s.fc(x).mean(1, keepdim=True).squeeze())),
    "one number per sample": Case(net(lambda s, x: s.fc(x).mean(1))),
    "batch merged with tokens": Case(net(lambda s, x: s.fc(x).reshape(-1, s.fc.out_features)), SEQUENCE),
    "tokens before the batch": Case(
        net(lambda s, x: s.fc(x).transpose(0, 1).reshape(-1, 4)), SEQUENCE, refused="mixes the samples of a batch"
    ),
    "one sample at a time, without a batch": Case(lambda: OneAtATime(None)),  # type: ignore[arg-type]
    "view of an input": Case(net(lambda s, x: (s.fc(x), x[:, :3])), names=("output", "output_1")),
    "float64 output": Case(net(lambda s, x: s.fc(x).double())),
    "classes": Case(net(lambda s, x: (s.fc(x), s.fc(x).argmax(1))), names=("output", "output_1")),
    "classes only": Case(net(lambda s, x: s.fc(x).argmax(1))),
    "booleans": Case(net(lambda s, x: s.fc(x) > 0)),
    "mean over the batch": Case(net(lambda s, x: (s.fc(x), s.fc(x).mean())), refused="no axis of it is the batch"),
    "constant": Case(net(lambda s, x: (s.fc(x), s.fc.weight.exp())), refused="leave out constants"),
    "an input": Case(net(lambda s, x: (s.fc(x), x)), refused="'output_1' is the input 'x', unchanged"),
    "an input cloned": Case(net(lambda s, x: (s.fc(x), x + 0)), refused="'output_1' is the input 'x', unchanged"),
    "one output twice": Case(net(lambda s, x: (y := s.fc(x), y)), refused="'output' and 'output_1' are equal"),
    "computed twice": Case(net(lambda s, x: (s.fc(x), s.fc(x))), refused="'output' and 'output_1' are equal"),
    "number": Case(net(lambda s, x: (s.fc(x), 0.5)), refused="'output_1', which forward returns, is a float"),
    "text": Case(net(lambda s, x: {"y": s.fc(x), "kind": "cat"}), refused="'kind', which forward returns, is a str"),
    "number from a tensor": Case(net(lambda s, x: (s.fc(x), x.sum().item())), refused="is a float"),
    "nothing": Case(net(lambda *_: None), refused="forward returns no tensor"),
    "packed sequence": Case(
        net(lambda s, x: rnn.pack_sequence(list(s.fc(x)))), SEQUENCE, refused="is a PackedSequence"
    ),
    "complex output": Case(net(lambda s, x: torch.fft.rfft(s.fc(x))), refused="(?s)is complex.*view_as_real"),
    "sparse output": Case(net(lambda s, x: s.fc(x).to_sparse()), refused="is torch.sparse_coo"),
    "as many rows as positive values": Case(net(lambda s, x: x[s.fc(x)[:, 0] > 0]), refused="no axis of it|other outp"),
    "other outputs for a batch": Case(
        net(lambda s, x: s.fc(x) if len(x) == 1 else (s.fc(x), x * 2)), refused="another number of samples"
    ),
    # names
    "names given": Case(net(lambda s, x: (s.fc(x), x * 2)), outputs=("a", "class"), names=("a", "class")),
    "name with a space": Case(net(lambda s, x: s.fc(x)), outputs=("my out",), refused="'my out' is no name"),
    "name twice": Case(net(lambda s, x: (s.fc(x), x * 2)), outputs=("o", "o"), refused="'o' is there twice"),
    "name of an input": Case(net(lambda s, x: s.fc(x)), outputs=("x",), refused="'x' is the name of an input"),
    "name of a type": Case(net(lambda s, x: s.fc(x)), outputs=("int8",), refused="'int8' is no name"),
    "name with an accent": Case(net(lambda s, x: s.fc(x)), outputs=("größe",), refused="'größe' is no name"),
    "too few names": Case(net(lambda s, x: (s.fc(x), x * 2)), outputs=("a",), refused="1 names are given for 2"),
    "input name with a dot": Case(net(lambda s, x: s.fc(x)), (spec("x.0", 6),), refused="'x.0' is no name"),
    "input name twice": Case(lambda: Variadic(None), (spec("x", 6), spec("x", 6)), refused="'x' is there twice"),  # type: ignore[arg-type]
    # what forward takes
    "any number of arguments": Case(lambda: Variadic(None), TWO),  # type: ignore[arg-type]
    "keyword only": Case(lambda: KeywordOnly(None), (spec("x", 6), spec("scale"))),  # type: ignore[arg-type]
    "keyword only, first": Case(lambda: KeywordOnly(None), (spec("scale"), spec("x", 6))),  # type: ignore[arg-type]
    "any keywords": Case(lambda: Keywords(None), TWO),  # type: ignore[arg-type]
    "defaults left": Case(lambda: Defaults(None)),  # type: ignore[arg-type]
    "default skipped": Case(lambda: Defaults(None), (spec("x", 6), spec("bias", 4))),  # type: ignore[arg-type]
    "another order": Case(lambda: Defaults(None), (spec("mask", 4), spec("x", 6))),  # type: ignore[arg-type]
    "half of the names in another order": Case(
        lambda: Defaults(None),  # type: ignore[arg-type]
        (spec("a", 6), spec("bias", 4)),
        refused="'bias', and forward takes 'mask' there",
    ),
    "one too few": Case(lambda: Step(None), refused="forward needs 't' too"),  # type: ignore[arg-type]
    "one too many": Case(net(lambda s, x: s.fc(x)), TWO, refused="forward takes 1 inputs"),
    "shape of another layer": Case(net(lambda s, x: s.fc(x)), (spec("x", 5),), refused=r"fails on x \[1, 5\]"),
    # what the inputs hold
    "one number per sample, given": Case(lambda: Step(None), (spec("x", 6), spec("t"))),  # type: ignore[arg-type]
    "float16 input": Case(lambda: Cast(None), (spec("x", 6, dtype="float16"),)),  # type: ignore[arg-type]
    "int8 input": Case(lambda: Cast(None), (spec("x", 6, dtype="int8"),), {"x": IDS[:, [0, 1, 2, 3, 4, 0]]}),  # type: ignore[arg-type]
    "bool input": Case(lambda: Cast(None), (spec("x", 6, dtype="bool"),), {"x": MASK[:, [0, 1, 2, 3, 4, 0]] > 0}),  # type: ignore[arg-type]
    "masked mean": Case(
        Pooled, (spec("ids", 5, dtype="int64"), spec("mask", 5, dtype="int64")), {"ids": IDS, "mask": MASK}
    ),
    "lengths as indices": Case(LastStep, (*SEQUENCE, spec("lengths", dtype="int64")), {"lengths": LENGTHS}),
    "packed by lengths": Case(
        Packed, (*SEQUENCE, spec("lengths", dtype="int64")), {"lengths": LENGTHS}, refused="torch.export cannot capture"
    ),
    "tokens beyond the embedding": Case(
        lambda: nn.Embedding(20, 4), (spec("ids", 5, dtype="int64"),), {"ids": IDS}, refused="index out of range"
    ),
    "changed in place": Case(net(lambda s, x: s.fc(x.mul_(2))), refused="changes its input 'x' in place"),
    # what the module is made of
    "bfloat16 weights": Case(lambda: nn.Sequential(nn.Linear(6, 4)).bfloat16()),
    "float16 weights": Case(lambda: nn.Sequential(nn.Linear(6, 4)).half()),
    "float64 weights": Case(lambda: nn.Sequential(nn.Linear(6, 4)).double()),
    "cast to float16 in forward": Case(lambda: Net(lambda s, x: s.fc(x.half())).half(), refused="fails on x|float16"),
    "autocast in forward": Case(lambda: Autocast(None), refused="module 'fc' computes in bfloat16"),  # type: ignore[arg-type]
    "autocast around a function": Case(
        net(lambda s, x: (s.fc(x).bfloat16() @ torch.eye(4).bfloat16()).float()), refused="forward computes in bfloat16"
    ),
    "embedding with max_norm": Case(
        lambda: nn.Embedding(50, 4, max_norm=0.5), (spec("ids", 5, dtype="int64"),), {"ids": IDS}
    ),
    "complex numbers between": Case(net(lambda s, x: torch.fft.rfft(s.fc(x)).abs())),
    "complex weights": Case(
        net(lambda s, x: (s.w * x).abs(), w=lambda: nn.Parameter(torch.ones(6, dtype=torch.complex64))),
        refused="'w' is complex",
    ),
    "lazy layer": Case(lambda: lazy(False), refused="'0' .LazyLinear. has no weight yet"),
    "lazy layer that has run": Case(lambda: lazy(True)),
    "scripted": Case(lambda: torch.jit.script(nn.Linear(6, 4)), refused="it is TorchScript"),
    "scripted part": Case(
        lambda: nn.Sequential(nn.Linear(6, 4), torch.jit.script(nn.ReLU())), refused="module '1' is TorchScript"
    ),
    "compiled": Case(lambda: torch.compile(nn.Linear(6, 4))),
    "data parallel": Case(lambda: nn.DataParallel(nn.Linear(6, 4))),
    "quantized layers": Case(dynamically_quantized, refused="module '0' is the quantized layer"),
    "on the meta device": Case(lambda: nn.Linear(6, 4, device="meta"), refused="'weight' has no values"),
    "NaN in a weight": Case(
        net(lambda s, x: s.w * x, w=lambda: nn.Parameter(torch.tensor([float("nan")]))), refused="'w' holds NaN"
    ),
    "layers in a list": Case(
        net(lambda s, x: s.layers[0](x), layers=lambda: [nn.Linear(6, 4)]), refused="plain attribute 'layers'"
    ),
    "list of its own layers": Case(listed),
    "hook that is a method": Case(Recorded),
    "hook that changes the output": Case(doubled_by_hook),
    "hook on a variable": Case(hooked_by_variable, refused="module 'body' has a function or hook that refers"),
    "forward replaced": Case(forward_replaced, refused="it has a function or hook that refers"),
    "computed tensor": Case(computed_tensor),
    "weight norm, old": Case(old_weight_norm),
    "spectral norm": Case(lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 4)))),
    "cannot be copied": Case(
        net(lambda s, x: s.fc(x), stream=lambda: (value for value in ())), refused="cannot be copied"
    ),
    # what torch.export meets
    "branch on a value": Case(
        net(lambda s, x: s.fc(x) if x.sum() > 0 else -s.fc(x)), refused="cannot capture it|depend on the other"
    ),
    "loop over a value": Case(
        net(lambda s, x: sum(s.fc(x) for _ in range(int(x.abs().max()) + 1))), refused="capture it|depend on the other"
    ),
    "branch on the shape": Case(net(lambda s, x: s.fc(x) if x.shape[1] == 6 else x)),
    "NumPy inside": Case(
        net(lambda s, x: s.fc(torch.from_numpy(x.numpy() * 2))), refused="cannot capture it|fails on x"
    ),
    "image": Case(IMAGE_NET, IMAGE),
    "functional": Case(net(lambda s, x: functional.linear(x, s.fc.weight))),
}
