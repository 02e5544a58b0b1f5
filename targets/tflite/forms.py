"""Integer forms: operators that the converter or the delegate would not keep in int8, rewritten so that they stay.

The converter knows an operator as integer only where it has an int8 kernel of its own, and XNNPACK delegates only some
of those kernels. Every rewrite below keeps the real values of the program:

1. A max pool pads with zeros where no value is negative: PAD is delegated, PADV2 with minus infinity is not.
2. An average pool is a depthwise convolution with equal weights for the CPU (XNNPACK has no int8 AVERAGE_POOL_2D).
3. A mean over height and width is a global average pool, which the converter keeps in NHWC: Vela takes no mean over
   what looks to it like depth.
4. The first convolution, where its stride is 2 and the image has at most four channels, reads pairs of neighbouring
   pixels as one pixel of twice the channels, for the CPU: XNNPACK's kernels read channels eight at a time, so that
   three of them waste more than half of the work. Weights move to where their pixels went; the new places hold zeros.
5. A hardswish, a GELU, a softmax, a product of two computed matrices and the factor before it compute in float between
   the program's integers, for the CPU: XNNPACK has no int8 kernel for them, and takes the float ones. They then give
   exactly the program's integers; TFLite's int8 product rounds twice, which moves one value in three hundred by a step.
   An NPU keeps them in int8.
6. The weight and bias of a norm, which computes in float everywhere, become the values that their integers represent.
   The converter would use the unrounded ones: a thirtieth of the norm's values would be off by a step.
"""

from __future__ import annotations

import logging
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch.fx import Graph, GraphModule, Node

from targets.tflite.sdk import litert_torch

logger = logging.getLogger(__name__)

Goal = Literal["cpu", "npu"]
Form = Callable[[GraphModule, Node, Goal], str | None]
"""Rewrites a node in place and returns None, or leaves it and returns why."""

aten = torch.ops.aten
quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
quantize_per_channel = torch.ops.quantized_decomposed.quantize_per_channel.default
dequantize_per_channel = torch.ops.quantized_decomposed.dequantize_per_channel.default

QMIN, QMAX = -128, 127
FOR_CPUS = "the form is for CPUs"
NOT_BETWEEN_INTEGERS = "it is not between integers"
MATRIX_PRODUCTS = {aten.matmul.default, aten.bmm.default}
KEPT_IN_FLOAT = frozenset({"hardswish", "gelu", "softmax", "matmul", "bmm", "mul"})
"""Operators of rule 5 by the names that `rewrite` counts them under."""
NORMS = {aten.layer_norm.default, aten.group_norm.default, aten.rms_norm.default}


def rewrite(program: GraphModule, goal: Goal) -> Counter[str]:
    """Bring a captured program's operators into the forms above, in place, and count the operators that changed."""
    changed: Counter[str] = Counter()
    for node in program.graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default  # the converter moves convolutions to NHWC, where a view may need a copy
    for node in list(program.graph.nodes):
        form = FORMS.get(node.target)
        if form is None or node._erased:
            continue
        name, left = str(node.target).split(".")[1].rstrip("_"), form(program, node, goal)
        if left is None:
            changed[name] += 1
        logger.debug("%s, for the %s: %s", node.name, goal, f"left, {left}" if left else "rewritten")
    program.graph.eliminate_dead_code()
    program.graph.lint()
    program.recompile()
    return changed


def _args(node: Node, *defaults: Any) -> tuple[Any, ...]:
    """A node's arguments (which torch types as any of twenty things), with defaults for those left out."""
    return (*node.args, *defaults[len(node.args) :])


def _between_quantizers(node: Node) -> bool:
    """Whether a node reads one dequantized tensor, and only quantizers read the node."""
    return _is(_args(node)[0], dequantize) and bool(node.users) and all(_is(user, quantize) for user in node.users)


def _is(value: object, target: object) -> bool:
    return isinstance(value, Node) and value.target is target


def _through_int8_like(graph: Graph, x: Node, like: Node) -> Node:
    """``x`` through the integers of ``like``, where that is dequantized from any."""
    if like.target not in (quantize, dequantize):
        return x
    parameters = _args(like)[1:]
    return graph.call_function(dequantize, (graph.call_function(quantize, (x, *parameters)), *parameters))


def keep_requantizations_apart(program: GraphModule) -> int:
    """Put a barrier at every change of quantization parameters, in place, and return how many there are.

    The converter treats a requantized tensor as the tensor itself, and refuses where an operator that has to keep its
    parameters, such as PAD or CONCATENATION, is next to it. Behind the barrier it makes a DEQUANTIZE and a
    QUANTIZE of the change.
    """
    changes = [
        node
        for node in program.graph.find_nodes(op="call_function", target=quantize)
        if _is(_args(node)[0], dequantize) and _args(_args(node)[0])[1:3] != _args(node)[1:3]
    ]
    for node in changes:
        with program.graph.inserting_before(node):
            node.update_arg(0, _held(program.graph, _args(node)[0]))
        logger.debug("%s: parameters change through float", node.name)
    program.recompile()
    return len(changes)


def _held(graph: Graph, x: Node) -> Node:
    """``x`` behind a barrier: the converter does not fuse the operators on its two sides, and removes it in the end."""
    litert_torch()  # registers the barrier
    barrier = torch.ops.litert_torch.optimization_barrier.default
    held = graph.call_function(barrier, ([x, x],))  # its lowering takes no fewer than two
    return graph.call_function(operator.getitem, (held, 0))


def _has_own_quantized_weight(node: Node) -> bool:
    weight = _args(node)[1]
    return (
        _is(weight, dequantize_per_channel)
        and len(weight.users) == 1
        and _is(_args(weight)[0], quantize_per_channel)
        and len(_args(weight)[0].users) == 1
        and all(source.op == "get_attr" for source in _args(weight)[0].args[:2])
    )


def _replace_weight(program: GraphModule, node: Node, values: torch.Tensor, scales: torch.Tensor) -> None:
    dequantizer = _args(node)[1]
    quantizer = _args(dequantizer)[0]
    with program.graph.inserting_before(quantizer):
        new_weight = _constant(program, f"{node.name}_weight", values)
        new_scales = _constant(program, f"{node.name}_scales", scales)
    quantizer.args = (new_weight, new_scales, *_args(quantizer)[2:])
    dequantizer.args = (quantizer, new_scales, *_args(dequantizer)[2:])


def _value(program: GraphModule, constant: Node) -> torch.Tensor:
    value = operator.attrgetter(str(constant.target))(program)
    assert isinstance(value, torch.Tensor)
    return value.detach()


def _constant(program: GraphModule, name: str, value: torch.Tensor) -> Node:
    while hasattr(program, name):
        name += "_"
    program.register_buffer(name, value.detach())
    return program.graph.get_attr(name)


def _max_pool(program: GraphModule, node: Node, goal: Goal) -> str | None:  # noqa: ARG001
    x, kernel, stride, padding, dilation, ceil_mode = _args(node, None, None, [], 0, 1, False)
    height, width = (padding, padding) if isinstance(padding, int) else (padding[0], padding[-1])
    if not (height or width):
        return "it pads nothing"
    if ceil_mode or not _never_negative(x):
        return "its windows or values do not allow zeros as padding"
    graph = program.graph
    with graph.inserting_before(node):
        padded = graph.call_function(aten.constant_pad_nd.default, (x, [width, width, height, height], 0.0))
        padded = _through_int8_like(graph, padded, x)
        node.args = (padded, kernel, stride, 0, dilation, ceil_mode)
    return None


def _never_negative(x: Node) -> bool:
    if x.target in (quantize, dequantize):  # zero has an integer, so rounding keeps the sign
        return _args(x)[2] == QMIN or _never_negative(_args(x)[0])
    return x.target in (aten.relu.default, aten.relu_.default, aten.relu6.default)


def _avg_pool(program: GraphModule, node: Node, goal: Goal) -> str | None:
    if goal == "npu" or not _between_quantizers(node):
        return FOR_CPUS if goal == "npu" else NOT_BETWEEN_INTEGERS
    x, kernel, stride, padding, ceil_mode, padding_counts, divisor = _args(node, None, None, [], 0, False, True, None)
    if ceil_mode or divisor is not None or (padding not in (0, [0], [0, 0]) and not padding_counts):
        return "it does not divide all windows by their size"
    height, width = (kernel, kernel) if isinstance(kernel, int) else (kernel[0], kernel[-1])
    channels = node.meta["val"].shape[1]
    graph = program.graph
    with graph.inserting_before(node):
        weight = _equal_weights(program, node.name, channels, height, width)
        pooled = graph.call_function(
            aten.conv2d.default, (x, weight, None, stride or [height, width], padding or [0, 0], [1, 1], channels)
        )
    node.replace_all_uses_with(pooled)
    return None


def _equal_weights(program: GraphModule, name: str, channels: int, height: int, width: int) -> Node:
    """Weights ``(channels, 1, height, width)`` of a mean, which int8 holds exactly: each is 127 steps."""
    mean = 1 / (height * width)
    values = (
        _constant(program, f"{name}_weight", torch.full((channels, 1, height, width), mean)),
        _constant(program, f"{name}_scales", torch.full((channels,), mean / QMAX)),
        _constant(program, f"{name}_zero_points", torch.zeros(channels, dtype=torch.int64)),
    )
    settings = (0, -QMAX, QMAX, torch.int8)
    quantized = program.graph.call_function(quantize_per_channel, (*values, *settings))
    return program.graph.call_function(dequantize_per_channel, (quantized, *values[1:], *settings))


def _mean(program: GraphModule, node: Node, goal: Goal) -> str | None:  # noqa: ARG001
    x, dimensions, keep = _args(node, None, None, False)
    if not _between_quantizers(node):
        return NOT_BETWEEN_INTEGERS
    if x.meta["val"].ndim != 4 or {axis % 4 for axis in dimensions} != {2, 3}:
        return "it is not over height and width"
    graph = program.graph
    with graph.inserting_before(node):
        pooled = graph.call_function(aten.adaptive_avg_pool2d.default, (x, [1, 1]))
        if not keep:
            integers = _through_int8_like(graph, pooled, next(iter(node.users)))
            pooled = graph.call_function(aten.flatten.using_ints, (integers, 1))
    node.replace_all_uses_with(pooled)
    return None


def _first_convolution(program: GraphModule, node: Node, goal: Goal) -> str | None:
    x, _, bias, stride, padding, dilation, groups = _args(node, None, None, None, [1, 1], [0, 0], [1, 1], 1)
    if goal == "npu":
        return FOR_CPUS
    if not _reads_an_input(x) or not _has_own_quantized_weight(node):
        return "it does not read an input, or shares its weight"
    batch, channels, height, width = x.meta["val"].shape
    weight, scales = (_value(program, source) for source in _args(_args(_args(node)[1])[0])[:2])
    outputs, _, rows, columns = weight.shape
    across = _pair_columns(columns, padding[-1], width)
    if channels > 4 or stride[-1] != 2 or width % 2 or columns < 2 or groups != 1 or set(dilation) != {1} or not across:
        return "its channels, stride or size do not fit pairs of pixels"
    left, right, taps = across
    tall = (height + 2 * padding[0] - rows) // stride[0] + 1
    bottom = max(0, (tall - 1) * stride[0] + rows - padding[0] - height)
    paired = torch.zeros(outputs, 2 * channels, rows, taps)
    for column in range(columns):
        pair, side = divmod(column - padding[-1], 2)
        paired[:, side * channels : (side + 1) * channels, :, pair + left] = weight[..., column]
    graph = program.graph
    with graph.inserting_before(node):
        last = graph.call_function(aten.permute.default, (x, [0, 2, 3, 1]))
        pairs = graph.call_function(aten.reshape.default, (last, [batch, height, width // 2, 2 * channels]))
        packed = _through_int8_like(graph, pairs, x)
        edges = [0, 0, left, right, padding[0], bottom]
        padded = _through_int8_like(graph, graph.call_function(aten.constant_pad_nd.default, (packed, edges, 0.0)), x)
        padded = graph.call_function(aten.permute.default, (padded, [0, 3, 1, 2]))
    _replace_weight(program, node, paired, scales)
    node.args = (padded, _args(node)[1], bias, [stride[0], 1], [0, 0], [1, 1], 1)
    return None


def _pair_columns(columns: int, padding: int, width: int) -> tuple[int, int, int] | None:
    """Pairs to pad with on the left and on the right, and pairs that a kernel of stride 2 covers.

    Output j reads the pixels ``2 j + a - padding`` for the kernel's columns a.

    >>> _pair_columns(columns=7, padding=3, width=224)  # pixels -3 to 3 lie in the pairs -2 to 1
    (2, 1, 4)
    """
    first, last = (-padding) // 2, (columns - 1 - padding) // 2
    wide = (width + 2 * padding - columns) // 2 + 1
    right = wide + last - width // 2
    return (-first, right, last - first + 1) if first <= 0 <= right else None


def _in_float(program: GraphModule, node: Node, goal: Goal) -> str | None:
    if goal == "npu":
        return FOR_CPUS
    if not all(_is(source, dequantize) for source in node.all_input_nodes):
        return NOT_BETWEEN_INTEGERS
    for user in list(node.users):
        with program.graph.inserting_before(user):
            user.replace_input_with(node, _held(program.graph, node))
    return None


def _factor(program: GraphModule, node: Node, goal: Goal) -> str | None:
    """A product with a number, where matrix products read its integers."""
    readers = [reader for quantizer in node.users for integers in quantizer.users for reader in integers.users]
    matrix_products = bool(readers) and all(reader.target in MATRIX_PRODUCTS for reader in readers)
    if not matrix_products or not isinstance(_args(node)[1], float):
        return "it is not the factor of a matrix product"
    return _in_float(program, node, goal)


def _norm(program: GraphModule, node: Node, goal: Goal) -> str | None:  # noqa: ARG001
    changed = False
    for source in node.all_input_nodes[1:]:
        quantizer = _args(source)[0] if _is(source, dequantize) else None
        if quantizer is None or _args(quantizer)[0].op != "get_attr":
            continue
        integers = quantize(_value(program, _args(quantizer)[0]), *_args(quantizer)[1:])
        with program.graph.inserting_before(node):
            values = _constant(program, f"{source.name}_values", dequantize(integers, *_args(source)[1:]))
        node.replace_input_with(source, values)
        changed = True
    return None if changed else "its parameters are no quantized constants"


def _reads_an_input(x: Node) -> bool:
    return _is(x, dequantize) and _is(_args(x)[0], quantize) and _args(_args(x)[0])[0].op == "placeholder"


FORMS: dict[object, Form] = {
    aten.max_pool2d.default: _max_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten.mean.dim: _mean,
    aten.conv2d.default: _first_convolution,
    **dict.fromkeys((*MATRIX_PRODUCTS, aten.softmax.int, aten.gelu.default), _in_float),
    **dict.fromkeys((aten.hardswish.default, aten.hardswish_.default), _in_float),
    aten.mul.Tensor: _factor,
    **dict.fromkeys(NORMS, _norm),
}
