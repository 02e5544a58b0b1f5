"""Operators that torch decomposes its functions into, as the functions they came from.

A program that was decomposed before it was saved, and what becomes of TorchScript, holds one operator for all
convolutions, ``addmm`` for linear layers, and softmax and layer norm in their inner forms. Later steps know functions.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

logger = logging.getLogger(__name__)

aten = torch.ops.aten
CONVOLUTIONS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
TRANSPOSED = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}


def composed(program: ExportedProgram) -> ExportedProgram:
    """The program with each such operator replaced by its function, in place."""
    changed = 0
    for node in list(program.graph.nodes):
        if node.op == "call_function" and not node.kwargs and (compose := _COMPOSE.get(node.target)) is not None:
            changed += compose(node)
    if changed:
        program.graph.eliminate_dead_code()
        logger.debug("%d operators are functions again", changed)
    return program


def _convolution(node: Node) -> bool:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = node.args[:9]
    spatial = len(stride) if isinstance(stride, Sequence) else 0
    if spatial not in CONVOLUTIONS:
        return False
    if transposed:
        node.target = TRANSPOSED[spatial]
        node.args = (x, weight, bias, stride, padding, output_padding, groups, dilation)
    else:
        node.target = CONVOLUTIONS[spatial]
        node.args = (x, weight, bias, stride, padding, dilation, groups)
    return True


def _linear_with_bias(node: Node) -> bool:
    bias, x, right = node.args
    weight = _transposed(right)
    if weight is None or _rank(bias) != 1:
        return False
    node.target, node.args = aten.linear.default, (x, weight, bias)
    return True


def _linear(node: Node) -> bool:
    x, right = node.args
    weight = _transposed(right)
    if weight is None or weight.op != "placeholder":  # a product of two activations is no layer
        return False
    node.target, node.args = aten.linear.default, (x, weight)
    return True


def _softmax(function: Any) -> Callable[[Node], bool]:
    def compose(node: Node) -> bool:
        x, axis, widened = node.args
        if widened:
            return False
        node.target, node.args = function, (x, axis)
        return True

    return compose


def _layer_norm(node: Node) -> bool:
    return _first_result(node, aten.layer_norm.default, node.args)


def _group_norm(node: Node) -> bool:
    x, weight, bias, _, _, _, groups, epsilon = node.args
    return _first_result(node, aten.group_norm.default, (x, groups, weight, bias, epsilon))


def _batch_norm(node: Node) -> bool:
    if node.args[5]:  # it normalises by the batch
        return False
    return _first_result(node, aten.batch_norm.default, (*node.args, False))


def _first_result(node: Node, function: Any, arguments: tuple[Any, ...]) -> bool:
    """The first of the three results is the function's; the others are there for training."""
    if any(user.target is not operator.getitem or (user.args[1] != 0 and user.users) for user in node.users):
        return False
    for user in list(node.users):
        if user.args[1] == 0:
            user.replace_all_uses_with(node)
            node.meta["val"] = user.meta["val"]
        user.graph.erase_node(user)
    node.target, node.args = function, arguments
    return True


def _resizing(function: Any, settings: int) -> Callable[[Node], bool]:
    """A resizing to a size, with so many settings behind it, and then with factors that follow from the sizes."""

    def compose(node: Node) -> bool:
        arguments: Any = node.args
        before, after = arguments[0].meta["val"].shape[2:], arguments[1]
        scales = arguments[2 + settings :]
        if any(scale not in (None, to / size) for scale, size, to in zip(scales, before, after, strict=False)):
            return False
        node.target, node.args = function, (*arguments[: 2 + settings], None)
        return True

    return compose


def _transposed(node: Any) -> Node | None:
    """The matrix of which this is the transpose."""
    if not isinstance(node, Node) or _rank(node) != 2:
        return None
    swaps = {aten.t.default: (), aten.permute.default: ([1, 0],), aten.transpose.int: (0, 1)}
    if node.target not in swaps or list(node.args[1:]) != list(swaps[node.target]):
        return None
    (source,) = node.all_input_nodes
    return source


def _rank(node: Any) -> int | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value.ndim if isinstance(value, Tensor) else None


_COMPOSE: dict[Any, Callable[[Node], bool]] = {
    aten.convolution.default: _convolution,
    aten._convolution.default: _convolution,
    aten.addmm.default: _linear_with_bias,
    aten.mm.default: _linear,
    aten._softmax.default: _softmax(aten.softmax.int),
    aten._log_softmax.default: _softmax(aten.log_softmax.int),
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
    aten.native_batch_norm.default: _batch_norm,
    aten.upsample_nearest2d.default: _resizing(aten.upsample_nearest2d.vec, 0),
    aten.upsample_bilinear2d.default: _resizing(aten.upsample_bilinear2d.vec, 1),
}
