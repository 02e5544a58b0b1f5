"""From a `Network`'s text to the module, its interface and its samples."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import TensorSpec
from tests.fuzz.blocks.catalogue import DoesNotFit, make, resulting_layout
from tests.fuzz.data import INPUTS, SAMPLES
from tests.fuzz.spec import Block, Network, Value
from tests.fuzz.weights import settle, train_like

LARGEST = 6000
"""Elements per sample of the largest value."""
MOST_WEIGHTS = 300_000
"""Weights of a block: beyond, a stage takes seconds for their number alone."""

NAMES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": (("x", "y", "z"), ()),
    "named": (("image", "tokens", "extra"), ("logits", "aux", "features")),
    "spaces": (("input", "in 2", "z"), ("my out", "aux out", "o")),
    "dotted": (("input.1", "x/y", "z:0"), ("out.1", "scope/out", "o:0")),
    "keywords": (("class", "lambda", "for"), ("def", "return", "if")),
    "alike": (("x", "y", "z"), ("x", "y", "z")),
    "duplicate": (("x", "y", "z"), ("o", "o", "o")),
    "numbers": (("0", "1x", "2"), ("1", "2", "3")),
    "reserved": (("args", "self", "kwargs"), ("output", "add", "conv2d")),
}
"""How inputs and outputs are called; no names for outputs leave them to the product."""

NAMED = {count: namedtuple(f"Results{count}", [f"part_{index}" for index in range(count)]) for count in (1, 2, 3)}


class _Network(nn.Module):
    """Blocks that read what stands before them."""

    def __init__(self, network: Network, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self._reads = [block.reads for block in network.blocks]
        self._outputs, self._returns = network.outputs, network.returns

    def _run(self, *inputs: Tensor) -> Any:
        values = list(inputs)
        for block, reads in zip(self.blocks, self._reads, strict=True):
            values.append(block(*(values[read] for read in reads)))
        results = [values[output] for output in self._outputs]
        match self._returns:
            case "list":
                return results
            case "dict":
                return {f"part_{index}": result for index, result in enumerate(results)}
            case "namedtuple":
                return NAMED[len(results)](*results)
            case "tuple":
                return tuple(results)
        return results[0] if len(results) == 1 else tuple(results)


class _OneInput(_Network):
    def forward(self, x: Tensor) -> Any:
        return self._run(x)


class _TwoInputs(_Network):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self._run(x, y)


class _ThreeInputs(_Network):
    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Any:
        return self._run(x, y, z)


@dataclass(frozen=True)
class Built:
    """A network that runs.

    Attributes:
        samples: ``(N, …)`` per input.
        values: The inputs and what each block gives.
    """

    network: Network
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    samples: tuple[Tensor, ...]
    values: tuple[Value, ...]

    def __str__(self) -> str:
        lines = [f"{index}: input {name} {self.values[index]}" for index, name in enumerate(self.network.inputs)]
        first = len(self.network.inputs)
        for index, block in enumerate(self.network.blocks, first):
            options = ", ".join(f"{name}={value!r}" for name, value in block.options.items())
            value = self.values[index]
            lines.append(f"{index}: {block.kind}({options}) of {list(block.reads)} -> {value.layout} {value.shape}")
        return "\n".join([*lines, f"returns {list(self.network.outputs)} as {self.network.returns}"])


class Builder:
    """Adds block after block, each run on the samples so that the next one knows what it reads."""

    def __init__(self, inputs: tuple[str, ...], seed: int) -> None:
        self._seed = seed
        rng = np.random.default_rng(seed)
        self.values = [INPUTS[name].value for name in inputs]
        self.tensors = [INPUTS[name].samples(rng, (SAMPLES, *INPUTS[name].value.shape)) for name in inputs]
        self.blocks: list[nn.Module] = []

    def add(self, block: Block) -> None:
        """Build a block, fill and settle it, and keep what it gives.

        Raises:
            DoesNotFit: It cannot be built or run on what it reads, or its result is of no use.
        """
        values = [self.values[read] for read in block.reads]
        tensors = [self.tensors[read] for read in block.reads]
        layout = resulting_layout(block, values)
        try:
            with torch.random.fork_rng():
                torch.manual_seed(self._seed)
                module = make(block, values).eval()
                if sum(parameter.numel() for parameter in module.parameters()) > MOST_WEIGHTS:
                    raise DoesNotFit("more weights than what runs in milliseconds")
                train_like(module, self._seed + len(self.blocks))
                result = settle(module, tensors)
        except Exception as error:  # torch has many classes for a shape that does not fit
            raise DoesNotFit(f"{type(error).__name__}: {error}") from error
        _check(result, layout)
        self.blocks.append(module)
        self.tensors.append(result)
        self.values.append(Value(layout, tuple(result.shape[1:])))


def _check(result: Tensor, layout: str) -> None:
    if layout == "answer":
        return
    ranks = {"image": 4, "channels_last": 4, "volume": 5, "tokens": 3, "signal": 3, "vector": 2, "ids": 2, "mask": 2}
    if result.ndim != ranks.get(layout, -1) or len(result) != SAMPLES or result.numel() == 0:
        raise DoesNotFit(f"{tuple(result.shape)} is no {layout}")
    if result[0].numel() > LARGEST:
        raise DoesNotFit("larger than what runs in milliseconds")
    if result.is_floating_point():
        largest = float(result.abs().max())
        if not 1e-4 < largest < 1e7:
            raise DoesNotFit(f"all values are below {largest}")


def build(network: Network) -> Built:
    """Build a network from its description.

    Raises:
        DoesNotFit: A block does not fit what it reads.
    """
    builder = Builder(network.inputs, network.seed)
    for block in network.blocks:
        builder.add(block)
    form = {1: _OneInput, 2: _TwoInputs, 3: _ThreeInputs}[len(network.inputs)]
    inputs, outputs = NAMES[network.names]
    specs = tuple(
        TensorSpec.model_validate({"name": name, "shape": INPUTS[kind].value.shape, "dtype": INPUTS[kind].dtype})
        for name, kind in zip(inputs, network.inputs, strict=False)
    )
    return Built(
        network=network,
        module=form(network, builder.blocks).eval(),
        inputs=specs,
        outputs=outputs[: len(network.outputs)],
        samples=tuple(builder.tensors[: len(network.inputs)]),
        values=tuple(builder.values),
    )
