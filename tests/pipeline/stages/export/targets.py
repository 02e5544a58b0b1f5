"""ONNX targets with one fault each. A child process imports them by name."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from pipeline.core import Model
from pipeline.models.capture import capture
from pipeline.target import Lowered, Session, Variant
from targets.onnx import OnnxTarget


class Miswriting(OnnxTarget):
    """Writes another operator than the model has, as a converter with a bug does.

    Args:
        operators: What it writes, by what it should write.
        first: How many of them it gets right.
    """

    def __init__(self, operators: dict[Any, Any], *, first: int = 0) -> None:
        super().__init__()
        self.operators, self.first = operators, first

    def __reduce__(self) -> tuple[type[OnnxTarget], tuple[()]]:
        return OnnxTarget, ()  # the child only loads and runs

    def lower(self, model: Model, out_dir: Path, *, name: str, variant: Variant | None = None) -> Lowered:
        graph = capture(model.module, model.inputs).module(check_guards=False)
        assert isinstance(graph, GraphModule)
        wrong = [node for node in graph.graph.nodes if node.target in self.operators]
        for node in wrong[self.first :]:
            node.target = self.operators[node.target]
        graph.recompile()
        return super().lower(replace(model, module=graph), out_dir, name=name, variant=variant)


class Crashing(OnnxTarget):
    """A runtime that takes its process down."""

    def load(self, lowered: Lowered, *, threads: int) -> Session:  # noqa: ARG002
        os.abort()


class Raising(OnnxTarget):
    """A converter that raises what nobody expects."""

    def lower(self, *_: object, **__: object) -> Lowered:
        raise KeyError("aten.fft")


class Rounding(Miswriting):
    """A runtime whose arithmetic explains the difference."""

    def explain(self, lowered: Lowered, model: Model) -> str:  # type: ignore[override]  # noqa: ARG002
        return "rounds twice"
