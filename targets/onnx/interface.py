"""Names of a graph's inputs and outputs: the model's own, whatever they are and whatever the graph calls its values."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from pipeline.core import TargetError


def name_interface(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give inputs and outputs their names; an output that is an input, a constant or another output is copied.

    Raises:
        TargetError: Two of them have one name, which ONNX cannot hold.
    """
    graph, names = model.graph, [*inputs, *outputs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise TargetError(
            f"ONNX cannot hold two inputs or outputs with one name: {twice!r}",
            where="model",
            fix="name each input and output differently: model: {inputs: [...], outputs: [...]}",
        )
    seen: set[ir.Value] = set()
    for index, value in enumerate(graph.outputs):
        if value in seen or value.is_graph_input() or value.is_initializer():
            copy = ir.node("Identity", [value])
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            graph.append(copy)
            graph.outputs[index] = copy.outputs[0]
        seen.add(graph.outputs[index])
    _free(model, set(names), {*graph.inputs, *graph.outputs})
    interface = [*graph.inputs, *graph.outputs]
    for number, value in enumerate(interface):
        value.name = f"interface.{number}"  # so that no name is taken while they are exchanged
    for value, name in zip(interface, names, strict=True):
        value.name = name


def _free(model: ir.Model, names: set[str], interface: set[ir.Value]) -> None:
    """Rename the values inside that have one of these names."""
    graph = model.graph
    inside = [*graph.initializers.values(), *(output for node in graph.all_nodes() for output in node.outputs)]
    taken = names | {value.name for value in inside if value.name}
    for value in inside:
        if value not in interface and value.name in names:
            number = next(count for count in range(len(taken) + 1) if f"{value.name}.inner.{count}" not in taken)
            value.name = f"{value.name}.inner.{number}"
            taken.add(value.name)
