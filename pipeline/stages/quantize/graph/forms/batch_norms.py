"""A batch norm becomes part of the convolution or linear layer before it, or else a 1x1 depthwise convolution.

It cannot fold if something else also reads that operator's result; torchao folds it all the same, which is wrong. As a
separate convolution it costs one rounding.
"""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.utils import _fuse_conv_bn_, _fuse_linear_bn_

from pipeline.stages.quantize.graph.capabilities import WEIGHTED, aten
from pipeline.stages.quantize.graph.nodes import add_parameter, tensor_of

BATCH_NORM = aten._native_batch_norm_legit_no_training.default


def fold_batch_norms(graph: GraphModule) -> int:
    """Fold each batch norm into the only operator that feeds it, in place; return how many there were."""
    count = len(_batch_norms(graph))
    _fuse_conv_bn_(graph)
    _fuse_linear_bn_(graph)
    return count


def batch_norms_to_convolutions(graph: GraphModule) -> int:
    """Turn each batch norm that cannot fold into a depthwise convolution, in place; return how many."""
    return sum(_to_convolution(graph, norm) for norm in _batch_norms(graph) if not _folds(norm))


def _batch_norms(graph: GraphModule) -> list[Node]:
    return [node for node in graph.graph.nodes if node.target == BATCH_NORM]


def _folds(norm: Node) -> bool:
    source = norm.args[0]
    assert isinstance(source, Node)
    return source.target in WEIGHTED and len(source.users) == 1


def _to_convolution(graph: GraphModule, norm: Node) -> bool:
    """Replace one batch norm, if there is a convolution of its rank and only its first result is read."""
    arguments: Any = norm.args
    source, gamma, beta, mean, variance, _, epsilon = arguments
    spatial = source.meta["val"].ndim - 2
    operator = {1: aten.conv1d.default, 2: aten.conv2d.default}.get(spatial)
    normalised = [user for user in norm.users if user.args[1] == 0]
    if operator is None or len(normalised) != len(norm.users):
        return False
    factor = (tensor_of(graph, variance) + epsilon).rsqrt() * (1.0 if gamma is None else tensor_of(graph, gamma))
    shift = (0.0 if beta is None else tensor_of(graph, beta)) - tensor_of(graph, mean) * factor
    with graph.graph.inserting_before(norm):
        weight = add_parameter(graph, f"{norm.name}_weight", factor.reshape(-1, *[1] * (spatial + 1)))
        bias = add_parameter(graph, f"{norm.name}_bias", shift)
        ones, zeros = [1] * spatial, [0] * spatial
        replacement = graph.graph.call_function(operator, (source, weight, bias, ones, zeros, ones, factor.numel()))
    replacement.meta = {**normalised[0].meta, "nn_module_stack": norm.meta.get("nn_module_stack", {})}
    for user in normalised:
        user.replace_all_uses_with(replacement)
        graph.graph.erase_node(user)
    graph.graph.erase_node(norm)
    return True
