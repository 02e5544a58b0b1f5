"""Where a file begins to differ: the model is cut behind an operator, written and run again, by bisection.

Cutting the model, not the file, works alike for every target and format: what the converter and the runtime make of the
part is compared with what torch makes of it. A difference that later operators hide is not found.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, fx
from torch.fx.graph import CodeGen

from pipeline.core import Model
from pipeline.models.capture import capture
from pipeline.target import Lowered, Target

Differs = Callable[[Model, Lowered], bool]
"""Whether the file that was made from a model computes something else than the model."""


def first_divergence(model: Model, target: Target, differs: Differs, folder: Path) -> str | None:
    """Name the first operator behind which a target's file differs; None where no part of the model does.

    Args:
        folder: Where the parts are written, in a temporary folder that is removed at the end.
    """
    graph = _graph_of(model)
    examples, ends = _ends(graph, model.examples)
    model = replace(model, examples=examples)
    with TemporaryDirectory(dir=folder, prefix=".parts-") as parts:

        def wrong(position: int) -> bool:
            module, count = _up_to(graph, ends[: position + 1])
            part = replace(model, module=module, outputs=tuple(f"part_{index}" for index in range(count)))
            return differs(part, target.lower(part, Path(parts), name=f"part_{position}"))

        low, high = -1, len(ends) - 1  # everything up to `low` is right; what ends at `high` is wrong
        if not ends or not wrong(high):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if wrong(middle) else (middle, high)
    return _described(graph, ends[high])


def _graph_of(model: Model) -> fx.GraphModule:
    if isinstance(model.module, fx.GraphModule):
        return model.module
    graph = capture(model.module, model.inputs, examples=model.examples).module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    return graph


def _ends(graph: fx.GraphModule, examples: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], list[str]]:
    """The operators to cut behind, in the order of the graph: those that give one float tensor ``(N, …)``.

    Returns:
        As many of the examples as the graph takes, and the names of the operators' nodes.
    """
    ends: list[str] = []

    class Watching(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            floats = isinstance(result, Tensor) and result.is_floating_point()
            if n.op == "call_function" and floats and result.ndim > 1 and len(result) == len(examples[0]):
                ends.append(n.name)
            return result

    with torch.inference_mode():
        try:
            Watching(graph).run(*examples)
        except (RuntimeError, AssertionError):  # the code that was captured fixes the batch
            examples = tuple(value[:1] for value in examples)
            ends.clear()
            Watching(graph).run(*examples)
    return examples, ends


def _up_to(graph: fx.GraphModule, ends: Sequence[str]) -> tuple[fx.GraphModule, int]:
    """The graph up to the last of these nodes: it returns those of them that none of the others is computed from.

    So no branch is left out, and a difference anywhere before the cut shows in what is returned.

    Returns:
        The part, and how many values it returns.
    """
    part = copy.deepcopy(graph)
    nodes = list(part.graph.nodes)
    inside = nodes[: 1 + next(index for index, node in enumerate(nodes) if node.name == ends[-1])]
    used = set[fx.Node]()  # what one of the ends is computed from
    returned = []
    for node in reversed(inside):
        if node.name in ends and node not in used:
            returned.append(node)
        if node.name in ends or node in used:
            used.update(node.all_input_nodes)
    output = nodes[-1]
    output.args = (tuple(reversed(returned)),)
    part.graph.set_codegen(CodeGen())  # the one of an exported graph knows how many outputs the whole has
    part.graph.eliminate_dead_code()
    part.recompile()
    return part, len(returned)


def _described(graph: fx.GraphModule, name: str) -> str:
    """An operator, and the module of the user's that it comes from."""
    node = next(node for node in graph.graph.nodes if node.name == name)
    modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    return f"{node.target}" + (f" in {modules[-1]!r}" if modules else "")
