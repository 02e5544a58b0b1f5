"""A batch norm becomes part of the convolution or linear layer before it, or else an operator of its own.

It folds where nothing else reads the result of that layer. The folded weight is a new one: another layer that shares
the old weight, or another call of the same layer, keeps what it had. Where a batch norm cannot fold, a 1x1 depthwise
convolution takes its place, which costs one rounding; where there is none of its rank, a product and a sum do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.fx import GraphModule, Node

from pipeline.stages.quantize.graph.capabilities import WEIGHTED, aten, rule_of
from pipeline.stages.quantize.graph.nodes import add_parameter, argument, group_count, tensor_of

BATCH_NORM = aten._native_batch_norm_legit_no_training.default


def batch_norms_to_operators(graph: GraphModule) -> int:
    """Replace every batch norm of which only the normalised values are read, in place; how many there were."""
    count = 0
    for node in list(graph.graph.nodes):
        if node.target == BATCH_NORM and all(user.args[1] == 0 for user in node.users):
            replacement = _folded(graph, node) if _folds(node) else _on_its_own(graph, node)
            for user in list(node.users):
                user.replace_all_uses_with(replacement)
                graph.graph.erase_node(user)
            graph.graph.erase_node(node)
            count += 1
    return count


class _Affine(NamedTuple):
    """What a batch norm computes: ``(x - mean) * inverse_deviation * gain + offset``, each ``(C,)``."""

    mean: Tensor
    inverse_deviation: Tensor
    gain: Tensor
    offset: Tensor


def _affine(graph: GraphModule, norm: Node) -> _Affine:
    arguments: Any = norm.args
    _, gain, offset, mean, variance, _, epsilon = arguments
    center = tensor_of(graph, mean)
    ones, zeros = center.new_ones(center.shape), center.new_zeros(center.shape)
    return _Affine(
        center,
        (tensor_of(graph, variance) + epsilon).rsqrt(),
        ones if gain is None else tensor_of(graph, gain),
        zeros if offset is None else tensor_of(graph, offset),
    )


def _folds(norm: Node) -> bool:
    """Whether the layer before it is read by nothing else, and has its channels where the norm has them."""
    layer: Any = norm.args[0]
    if layer.target not in WEIGHTED or len(layer.users) > 1 or layer.args[1].op != "get_attr":
        return False
    bias = argument(layer, 2)
    if bias is not None and bias.op != "get_attr":
        return False
    return bool(layer.target != aten.linear.default or layer.meta["val"].ndim == 2)


def _folded(graph: GraphModule, norm: Node) -> Node:
    """The layer before it, with a weight and a bias of its own that hold the norm."""
    layer: Any = norm.args[0]
    mean, inverse_deviation, gain, offset = _affine(graph, norm)
    weight, bias = tensor_of(graph, layer.args[1]), argument(layer, 2)
    held = mean.new_zeros(mean.shape) if bias is None else tensor_of(graph, bias)
    factor = gain * inverse_deviation
    with graph.graph.inserting_before(layer):
        layer.args = (
            layer.args[0],
            add_parameter(graph, f"{norm.name}_weight", _scaled(weight, factor, layer)),
            add_parameter(graph, f"{norm.name}_bias", (held - mean) * inverse_deviation * gain + offset),
            *layer.args[3:],
        )
    assert isinstance(layer, Node)
    return layer


def _scaled(weight: Tensor, factor: Tensor, layer: Node) -> Tensor:
    """The weight with its output channels scaled; those of a transposed convolution lie on axis 1, per group."""
    kernel = [1] * (weight.ndim - 2)
    if rule_of(layer).channel_axis == 0:
        return weight * factor.reshape(-1, 1, *kernel)
    groups = group_count(layer)
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    return (grouped * factor.reshape(groups, 1, -1, *kernel)).reshape(weight.shape)


def _on_its_own(graph: GraphModule, norm: Node) -> Node:
    """A depthwise convolution, or where there is none of its rank a product and a sum."""
    source: Any = norm.args[0]
    mean, inverse_deviation, gain, offset = _affine(graph, norm)
    factor = inverse_deviation * gain
    shift = offset - mean * factor
    spatial = source.meta["val"].ndim - 2
    operator = {1: aten.conv1d.default, 2: aten.conv2d.default}.get(spatial)
    value = next(iter(norm.users)).meta
    meta = {**value, "nn_module_stack": norm.meta.get("nn_module_stack", {})}
    with graph.graph.inserting_before(norm):
        if operator is not None:
            weight = add_parameter(graph, f"{norm.name}_weight", factor.reshape(-1, *[1] * (spatial + 1)))
            bias = add_parameter(graph, f"{norm.name}_bias", shift)
            ones, zeros = [1] * spatial, [0] * spatial
            arguments = (source, weight, bias, ones, zeros, ones, len(factor))
            replacement = graph.graph.call_function(operator, arguments)
        else:
            shape = (-1, *[1] * spatial)
            scale = add_parameter(graph, f"{norm.name}_scale", factor.reshape(shape))
            product = graph.graph.call_function(aten.mul.Tensor, (source, scale))
            product.meta = dict(meta)
            bias = add_parameter(graph, f"{norm.name}_shift", shift.reshape(shape))
            replacement = graph.graph.call_function(aten.add.Tensor, (product, bias))
    replacement.meta = meta
    return replacement
