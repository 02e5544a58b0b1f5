"""What rewrites of a captured program share: its quantizers, and nodes to add to it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map_only

from targets.tflite.sdk import litert_torch

Step = tuple[Any, tuple[Any, ...]]
"""An operator, and its arguments behind the tensor that it moves."""

aten = torch.ops.aten
quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
quantize_per_channel = torch.ops.quantized_decomposed.quantize_per_channel.default
dequantize_per_channel = torch.ops.quantized_decomposed.dequantize_per_channel.default
CLAMPS = frozenset(
    {
        *(aten.relu.default, aten.relu_.default, aten.relu6.default, aten.relu6_.default),
        *(aten.hardtanh.default, aten.hardtanh_.default, aten.clamp.default, aten.clamp_min.default),
        aten.clamp_max.default,
    }
)
"""Operators that fuse into the layer before them."""


def arguments(node: Node, *defaults: Any) -> tuple[Any, ...]:
    """A node's arguments (which torch types as any of twenty things), with defaults for those left out."""
    return (*node.args, *defaults[len(node.args) :])


def between_quantizers(node: Node) -> bool:
    """Whether a node reads one dequantized tensor, and only quantizers read the node."""
    read_by = [calls(user, quantize) for user in node.users]
    return calls(arguments(node)[0], dequantize) and bool(read_by) and all(read_by)


def calls(value: object, target: object) -> bool:
    """Whether a value is a node that calls that operator."""
    return isinstance(value, Node) and value.target is target


def example_of(node: Node) -> Any:
    """What a node gives, without its numbers; of a node that a rewrite has just added, computed from what it reads."""
    if "val" not in node.meta:
        if node.op == "get_attr" and node.graph.owning_module is not None:
            owner, _, name = str(node.target).rpartition(".")
            node.meta["val"] = getattr(node.graph.owning_module.get_submodule(owner), name)
        elif callable(node.target):
            given = (map_arg(each, example_of) for each in (node.args, node.kwargs))
            with FakeTensorMode():
                args, kwargs = tree_map_only(torch.Tensor, _unfilled, tuple(given))
                node.meta["val"] = node.target(*args, **kwargs)
    return node.meta["val"]


def forget_example(node: Node) -> Node:
    """The node, of which a rewrite has changed the shape."""
    node.meta.pop("val", None)
    return node


def _unfilled(value: torch.Tensor) -> torch.Tensor:
    """A tensor of the present mode like another: operators do not take tensors of several modes."""
    return torch.empty(value.shape, dtype=value.dtype)


def shape_of(node: Node) -> torch.Size:
    """The shape of a node's tensor."""
    shape: torch.Size = example_of(node).shape
    return shape


def is_float(node: Node) -> bool:
    """Whether a node's value is one tensor of real numbers."""
    value = example_of(node) if node.op == "call_function" else node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def through_int8_like(graph: Graph, x: Node, like: Node) -> Node:
    """``x`` through the integers of ``like``, where that is dequantized from any."""
    if like.target not in (quantize, dequantize):
        return x
    parameters = arguments(like)[1:]
    return graph.call_function(dequantize, (graph.call_function(quantize, (x, *parameters)), *parameters))


def held(graph: Graph, x: Node) -> Node:
    """``x`` behind a barrier: the converter does not fuse the operators on its two sides, and removes it in the end."""
    litert_torch()  # registers the barrier
    barrier = torch.ops.litert_torch.optimization_barrier.default
    held = graph.call_function(barrier, ([x, x],))  # its lowering takes no fewer than two
    return graph.call_function(operator.getitem, (held, 0))


def moved(graph: Graph, x: Node, steps: Sequence[Step], *, end: bool = False) -> Node:
    """``x`` through operators that only move values, with the integers of ``x`` in between where it is dequantized.

    Args:
        steps: Each an operator and its arguments behind the tensor.
        end: Whether to add the integers behind the last step, too.
    """
    value = x
    for position, (target, rest) in enumerate(steps):
        value = graph.call_function(target, (value, *rest))
        if end or position < len(steps) - 1:
            value = through_int8_like(graph, value, x)
    return value


def has_own_quantized_weight(node: Node) -> bool:
    """Whether a weighted operator reads a constant through a quantizer that nothing else reads."""
    weight = arguments(node)[1]
    return (
        calls(weight, dequantize_per_channel)
        and len(weight.users) == 1
        and calls(arguments(weight)[0], quantize_per_channel)
        and len(arguments(weight)[0].users) == 1
        and all(source.op == "get_attr" for source in arguments(weight)[0].args[:2])
    )


def replace_weight(
    program: GraphModule, node: Node, values: torch.Tensor, scales: torch.Tensor, *, axis: int = 0
) -> None:
    """Give an operator another quantized weight with one scale per index of ``axis``."""
    dequantizer = arguments(node)[1]
    quantizer = arguments(dequantizer)[0]
    with program.graph.inserting_before(quantizer):
        new_weight = add_constant(program, f"{node.name}_weight", values)
        new_scales = add_constant(program, f"{node.name}_scales", scales)
        zero_points = add_constant(program, f"{node.name}_zero_points", torch.zeros(len(scales), dtype=torch.int64))
    limits = arguments(quantizer)[4:]
    quantizer.args = (new_weight, new_scales, zero_points, axis, *limits)
    dequantizer.args = (quantizer, new_scales, zero_points, axis, *limits)


def value_of(program: GraphModule, constant: Node) -> torch.Tensor:
    """The tensor behind a ``get_attr`` node."""
    value = operator.attrgetter(str(constant.target))(program)
    assert isinstance(value, torch.Tensor)
    return value.detach()


def add_constant(program: GraphModule, name: str, value: torch.Tensor) -> Node:
    """A new buffer, read by a new node at the graph's insertion point."""
    while hasattr(program, name):
        name += "_"
    program.register_buffer(name, value.detach())
    return program.graph.get_attr(name)
