"""The canonical graph: compound operators taken apart until integer kernels exist for what is left.

Each rewriting computes the same function as the operator it replaces. It runs before quantization, because a range
has to be taken of every intermediate that an integer kernel will round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.utils import _fuse_conv_bn_, _fuse_linear_bn_

from pipeline.core import Model
from pipeline.models.capture import capture
from pipeline.stages.quantize.annotator import tensor_of

aten = torch.ops.aten

FOLD_BATCH_NORM = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.linear.default,
)
"""Operators that take the batch norm after them into their weights."""


MASKED = -1e4
"""A score that softmax makes zero of, and float16 can hold; a smaller number in an additive mask means the same."""


def canonical_graph(model: Model, program: ExportedProgram | None = None) -> GraphModule:
    """The module as a functional ATen graph without batch norms, recurrent cells, attention, SiLU or hardsigmoid.

    Args:
        program: The module as captured by the caller, where more than the batch is to stay dynamic.

    Raises:
        StageError: torch.export cannot trace the module.
    """
    program = program or capture(model.module, model.inputs)
    graph: GraphModule = program.run_decompositions(decompositions()).module(check_guards=False)
    multiply_by_reciprocals(graph)
    batch_norms_to_convolutions(graph)
    _fuse_conv_bn_(graph)
    _fuse_linear_bn_(graph)
    numbers_to_biases(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def decompositions() -> dict[Any, Callable[..., Any]]:
    """How compound ATen operators are taken apart; LSTM and GRU are unrolled over time."""
    return {
        **get_decompositions([aten.lstm.input, aten.gru.input]),
        aten.silu.default: silu,
        aten.hardsigmoid.default: hardsigmoid,
        aten.scaled_dot_product_attention.default: attention,
    }


def silu(x: Tensor) -> Tensor:
    """``x * sigmoid(x)``: there are integer kernels for both, and none for the whole."""
    return x * torch.sigmoid(x)


def hardsigmoid(x: Tensor) -> Tensor:
    """``relu6(x + 3) / 6``: the clamp gives the sum its range, and the factor only changes the scale."""
    return torch.clamp(x + 3.0, 0.0, 6.0) * (1 / 6)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """``softmax(q s @ k^T) @ v``; the scale meets the query, the smaller factor. Shared heads stay whole.

    A masked score becomes `MASKED`, and is added to where the mask is a finite offset.
    """
    if enable_gqa or dropout_p > 0:
        return NotImplemented
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        offsets, attn_mask = attn_mask, attn_mask > MASKED
        scores = scores + torch.where(attn_mask, offsets, 0.0)
    if attn_mask is not None:
        scores = torch.where(attn_mask, scores, MASKED)
    return torch.softmax(scores, -1) @ value


def multiply_by_reciprocals(graph: GraphModule) -> None:
    """``x / c`` as ``x * (1 / c)`` for numbers c: integer runtimes multiply, and few of them divide."""
    for node in graph.graph.nodes:
        if node.target == aten.div.Tensor and not isinstance(node.args[1], Node):
            node.target = aten.mul.Tensor
            node.args = (node.args[0], 1 / node.args[1])


def batch_norms_to_convolutions(graph: GraphModule) -> None:
    """A batch norm that cannot fold into the operator before it as a 1x1 depthwise convolution: one rounding.

    It cannot where something else reads that operator's result too; torchao folds it all the same, which is wrong.
    """
    for node in list(graph.graph.nodes):
        if node.target != aten._native_batch_norm_legit_no_training.default:
            continue
        source = node.args[0]
        if source.target in FOLD_BATCH_NORM and len(source.users) == 1:
            continue
        spatial = source.meta["val"].ndim - 2
        operator = {1: aten.conv1d.default, 2: aten.conv2d.default}.get(spatial)
        normalised = [user for user in node.users if user.args[1] == 0]
        if operator is None or len(normalised) != len(node.users):
            continue
        mean, variance = tensor_of(graph, node.args[3]), tensor_of(graph, node.args[4])
        gamma, beta = (None if argument is None else tensor_of(graph, argument) for argument in node.args[1:3])
        factor = (variance + node.args[6]).rsqrt() * (1.0 if gamma is None else gamma)
        shift = (0.0 if beta is None else beta) - mean * factor
        with graph.graph.inserting_before(node):
            weight = _parameter(graph, f"{node.name}_weight", factor.reshape(-1, *[1] * (spatial + 1)))
            bias = _parameter(graph, f"{node.name}_bias", shift)
            ones, zeros = [1] * spatial, [0] * spatial
            replacement = graph.graph.call_function(operator, (source, weight, bias, ones, zeros, ones, factor.numel()))
        replacement.meta = {**normalised[0].meta, "nn_module_stack": node.meta.get("nn_module_stack", {})}
        for user in normalised:
            user.replace_all_uses_with(replacement)
            graph.graph.erase_node(user)
        graph.graph.erase_node(node)


def numbers_to_biases(graph: GraphModule) -> None:
    """``conv(x) + c`` for numbers c as a convolution whose bias holds c: one rounding, and one operator, fewer.

    Not where something else reads the convolution's result too. Squeeze-and-excite gates (hardsigmoid) are such sums.
    """
    for node in list(graph.graph.nodes):
        if node.target != aten.add.Tensor or isinstance(node.args[1], Node) or node.kwargs:
            continue
        source, number = node.args
        if source.target not in FOLD_BATCH_NORM or len(source.users) > 1:
            continue
        channels = node.meta["val"].shape[-1 if source.target == aten.linear.default else 1]
        bias = source.args[2] if len(source.args) > 2 else None
        with graph.graph.inserting_before(source):
            held = torch.zeros(channels) if bias is None else tensor_of(graph, bias)
            source.args = (*source.args[:2], _parameter(graph, f"{node.name}_bias", held + number), *source.args[3:])
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)


def _parameter(graph: GraphModule, name: str, value: Tensor) -> Node:
    graph.register_parameter(name, nn.Parameter(value, requires_grad=False))
    node = graph.graph.get_attr(name)
    fake_mode = next(n.meta["val"].fake_mode for n in graph.graph.nodes if n.op == "placeholder" and "val" in n.meta)
    node.meta["val"] = fake_mode.from_tensor(value, static_shapes=True)
    return node
