"""Losses: whether a network's outputs bear what a grid does to some of its values, tried on samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from pipeline.core.outputs import output_tuple
from pipeline.stages.quantize.graph.capabilities import SPLITS, kind_of
from pipeline.stages.quantize.graph.equality import least_sqnr_db
from pipeline.stages.quantize.graph.nodes import is_float_tensor
from pipeline.stages.quantize.scales.numbers import affine_parameters, rounded

ENOUGH_DB = 30.0
"""SQNR of every output where a single value is changed, from which on its grid is fine enough."""

Change = Callable[[Tensor], Tensor]
"""What a grid does to a value."""


def on_own_grid(value: Tensor) -> Tensor:
    """A value on the int8 grid from its smallest number to its largest."""
    if value.numel() == 0 or not value.isfinite().all():
        return value
    return rounded(value, *affine_parameters(float(value.min()), float(value.max())))


@dataclass(frozen=True)
class Losses:
    """A float graph whose values are changed, and the samples ``(N, …)`` on which it is tried."""

    graph: GraphModule
    inputs: tuple[Tensor, ...]

    def spoiled_by(self, changes: Mapping[Node, Change]) -> bool:
        """Whether any real output is spoiled where these values are changed."""
        return least_sqnr_db(self._exact, self._outputs(changes)) < ENOUGH_DB

    def dependents(self, value: Node, change: Change = on_own_grid) -> list[Node]:
        """Operators that need floats since a change of one value spoils an output; none where it does not.

        They are the value's readers, and in turn the readers of those whose own results, rounded, spoil an output.
        """
        if not self.spoiled_by({value: change}):
            return []
        found = dict.fromkeys(readers(value))
        pending = list(found)
        while pending:
            operator = pending.pop()
            if self.spoiled_by({operator: on_own_grid}):
                following = [reader for reader in readers(operator) if reader not in found]
                found |= dict.fromkeys(following)
                pending += following
        return list(found)

    @cached_property
    def _exact(self) -> tuple[Tensor, ...]:
        return self._outputs({})

    def _outputs(self, changes: Mapping[Node, Change]) -> tuple[Tensor, ...]:
        class Changing(Interpreter):
            def run_node(self, n: Node) -> Any:
                value = super().run_node(n)
                return changes[n](value) if n in changes else value

        with torch.no_grad():
            results = output_tuple(Changing(self.graph).run(*self.inputs))
        return tuple(each for each in results if each.is_floating_point())


def readers(value: Node) -> Iterator[Node]:
    """Operators with a rule that read a value, past those that split it."""
    for user in value.users:
        if user.target in SPLITS:
            yield from (part for part in user.users if kind_of(part) is not None)
        elif kind_of(user) is not None and is_float_tensor(user):
            yield user
