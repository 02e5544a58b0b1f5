"""Nodes: the identity of a node across copies of a graph, and what passes need to know of a node.

Calibration reads the canonical graph; simulations and programs are copies of it, into which PT2E inserts nodes. A node
keeps its key through all of that.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from pipeline.stages.quantize.graph.capabilities import kind_of

_NODE_KEY = "edgewright_key"


def give_keys(graph: GraphModule) -> None:
    """Give every node of a canonical graph the key that identifies its copies; it reads like the node's name."""
    for node in graph.graph.nodes:
        node.meta[_NODE_KEY] = node.name


def key_of(node: Node) -> str:
    """The node's key; empty for a node that was inserted after the keys were given."""
    return str(node.meta.get(_NODE_KEY, ""))


def by_key(graph: GraphModule) -> dict[str, Node]:
    """The nodes of a canonical graph, or of a copy of one, by their keys."""
    return {key_of(node): node for node in graph.graph.nodes if key_of(node)}


def layer_name(node: Node) -> str:
    """The module that an operator comes from, such as ``layers.0.conv1``; its node name where it has none."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    name = str(stack[-1][0]) if stack else ""
    return name or node.name


def is_float_tensor(node: Node) -> bool:
    """Whether a node's value is one floating-point tensor."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def activations(node: Node) -> list[Node]:
    """The float tensors that an operator reads, without its weight and bias."""
    sources = node.all_input_nodes
    if kind_of(node) == "weighted":
        sources = sources[:1]
    elif node.target == operator.getitem:
        sources = sources[0].all_input_nodes[:1]  # past the operator that split the tensor
    return [value for value in sources if is_float_tensor(value)]


def argument(node: Node, index: int, default: Any = None) -> Any:
    """A positional argument of an operator, or the default where it is left out or None."""
    value = node.args[index] if len(node.args) > index else None
    return default if value is None else value


def channel_axis(operator: Any) -> int:
    """The channel axis of a weighted operator's input and output: the last one for a linear layer, else 1."""
    return -1 if operator == torch.ops.aten.linear.default else 1


def group_count(node: Node) -> int:
    """The groups of a convolution; 1 for a linear layer."""
    return int(argument(node, 6, 1))


def pad_value(node: Node) -> float | None:
    """The number that a pad writes; None for one that copies values, and for any other operator."""
    if node.target == torch.ops.aten.pad.default and argument(node, 2, "constant") == "constant":
        return float(argument(node, 3, 0.0))
    return float(argument(node, 2, 0.0)) if node.target == torch.ops.aten.constant_pad_nd.default else None


def tensor_of(graph: GraphModule, node: Node) -> Tensor:
    """The value of a ``get_attr`` node."""
    owner, _, name = str(node.target).rpartition(".")
    value = getattr(graph.get_submodule(owner), name)
    assert isinstance(value, Tensor)
    return value.detach()


def set_tensor(graph: GraphModule, node: Node, value: Tensor) -> None:
    """Give a ``get_attr`` node another value."""
    owner, _, name = str(node.target).rpartition(".")
    setattr(graph.get_submodule(owner), name, nn.Parameter(value, requires_grad=False))


def add_parameter(graph: GraphModule, name: str, value: Tensor) -> Node:
    """A new parameter, read by a new ``get_attr`` node at the graph's insertion point."""
    graph.register_parameter(name, nn.Parameter(value, requires_grad=False))
    node = graph.graph.get_attr(name)
    fake_mode = next(n.meta["val"].fake_mode for n in graph.graph.nodes if n.op == "placeholder" and "val" in n.meta)
    node.meta["val"] = fake_mode.from_tensor(value, static_shapes=True)
    return node
