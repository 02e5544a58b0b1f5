"""A network on its way through the product: each step is taken when an oracle first asks for it, and announced."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import targets
from pipeline import Budget, Model, QuantizeConfig, export, from_dataset, from_module, quantize
from pipeline.stages.quantize import stage as quantize_stage
from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.target import Exported
from tests.fuzz.networks import Built

SETTINGS: dict[str, tuple[dict[str, Any], float]] = {
    "fast": ({"observers": ("minmax",), "equalisation": False, "smoothquant": False}, 1.0),
    "default": ({}, 1.0),
    "skip_first": ({"observers": ("minmax",), "skip": ("blocks.0",)}, 1.0),
    "skip_last": ({"observers": ("minmax",), "skip": ("blocks.1",)}, 1.0),
    "strict": ({"observers": ("minmax",)}, 0.0),
}
"""How a network is quantized: configuration, and how far the budget lets its metric fall."""

SHOWN = 8
"""Samples that files are run on."""

Array = np.ndarray[Any, Any]


class _Samples:
    """A map-style dataset of tuples of inputs."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors

    def __len__(self) -> int:
        return len(self._tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self._tensors)


@dataclass
class Subject:
    """A network, and what the product makes of it.

    Attributes:
        folder: Where its files go.
        announce: Is told of every stage that begins.
    """

    built: Built
    folder: Path
    announce: Callable[[str], None]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage, and that the oracle's own work goes on after it."""
        self.announce(name)
        yield
        self.announce("compare")

    @cached_property
    def model(self) -> Model:
        with self.stage("load"):
            return from_module(self.built.module, self.built.inputs, outputs=self.built.outputs)

    @cached_property
    def samples(self) -> tuple[Tensor, ...]:
        """The samples in the types that files take: float32 for float16."""
        given = zip(self.built.samples, self.model.inputs, strict=True)
        return tuple(tensor.to(getattr(torch, spec.dtype)) for tensor, spec in given)

    @cached_property
    def canonical(self) -> GraphModule:
        model = self.model
        with self.stage("canonical graph"):
            return canonical_graph(model, inputs=tuple(t[:4] for t in self.samples))

    @cached_property
    def program(self) -> Model:
        """The INT8 program; made from `canonical`, since capturing it once more takes half of the time."""
        model, graph = self.model, self.canonical
        config, drop = SETTINGS[self.built.network.settings]
        samples = from_dataset(_Samples(self.samples), model.inputs)
        budget = Budget(metric="agreement", max_drop=drop)
        memo = patch.object(quantize_stage, "canonical_graph", lambda *_, **__: copy.deepcopy(graph))
        with self.stage("quantize"), memo:
            return quantize(model, QuantizeConfig(**config), samples, held_out=samples, budget=budget)

    def exported(self, target: str) -> Exported:
        program = self.program
        with self.stage(f"export {target}"):
            return export(program, [targets.get(target)], self.folder)[0]

    @cached_property
    def expected(self) -> list[Array]:
        """What the module gives in FP32 for all samples, one array per output."""
        return outputs_of(self.built.module, self.built.samples)

    @cached_property
    def precise(self) -> list[Array]:
        """The same in FP64, as far as the module's own code allows it; else in FP32."""
        try:
            module = copy.deepcopy(self.built.module).double()
            return outputs_of(module, [t.double() if t.dtype == torch.float32 else t for t in self.built.samples])
        except Exception:  # code that names float32, or a module that cannot be copied
            return self.expected


def outputs_of(module: nn.Module, inputs: Sequence[Tensor]) -> list[Array]:
    """A module's outputs as arrays, in steps where it takes one batch size only.

    The module must not change its inputs, so it gets copies.
    """
    step = fixed_batch(module) or len(inputs[0])
    return in_steps(lambda part: _arrays(module(*(tensor.clone() for tensor in part))), inputs, step)


def in_steps(run: Callable[[Sequence[Any]], Sequence[Array]], inputs: Sequence[Any], step: int) -> list[Array]:
    """The outputs of so many samples at a time, joined; of 0-d outputs, which have no batch, those of the first."""
    with torch.no_grad():
        rows = [run([tensor[i : i + step] for tensor in inputs]) for i in range(0, len(inputs[0]), step)]
    return [np.concatenate(parts) if np.ndim(parts[0]) else np.asarray(parts[0]) for parts in zip(*rows, strict=True)]


def fixed_batch(module: nn.Module) -> int | None:
    """The one batch size that a captured graph takes: where a model's own code fixes it (``len(x)``)."""
    if not isinstance(module, GraphModule):
        return None
    sizes = [
        node.meta["val"].shape[0] for node in module.graph.nodes if node.op == "placeholder" and "val" in node.meta
    ]
    return sizes[0] if sizes and isinstance(sizes[0], int) else None


def _arrays(results: Any) -> list[Array]:
    if isinstance(results, dict):
        results = list(results.values())
    results = results if isinstance(results, tuple | list) else (results,)
    return [result.detach().numpy() for result in results]
