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
from collections import Counter
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch.fx import GraphModule, Node

from targets.tflite.graph import (
    add_constant,
    arguments,
    aten,
    between_quantizers,
    calls,
    dequantize,
    dequantize_per_channel,
    has_own_quantized_weight,
    held,
    quantize,
    quantize_per_channel,
    replace_weight,
    shape_of,
    through_int8_like,
    value_of,
)

logger = logging.getLogger(__name__)

Goal = Literal["cpu", "npu"]
Form = Callable[[GraphModule, Node], str | None]
"""Rewrites a node in place and returns None, or leaves it and returns why."""

QMIN, QMAX = -128, 127
NOT_BETWEEN_INTEGERS = "it is not between integers"
MATRIX_PRODUCTS = {aten.matmul.default, aten.bmm.default}
KEPT_IN_FLOAT = frozenset({"hardswish", "gelu", "softmax", "matmul", "bmm", "mul"})
"""Operators of rule 5 by the names that `rewrite` counts them under."""
NORMS = {aten.layer_norm.default, aten.group_norm.default, aten.rms_norm.default}


class Changed(NamedTuple):
    """How many operators a rewriting changed, by their names: for all runtimes, and for CPUs only."""

    everywhere: Counter[str]
    for_cpus: Counter[str]


def rewrite(program: GraphModule, goal: Goal) -> Changed:
    """Bring a captured program's operators into the forms above, in place."""
    changed = Changed(Counter(), Counter())
    forms = FORMS | CPU_FORMS if goal == "cpu" else FORMS
    for node in list(program.graph.nodes):
        form = forms.get(node.target)
        if form is None or node._erased:
            continue
        name, left = str(node.target).split(".")[1].rstrip("_"), form(program, node)
        if left is None:
            (changed.everywhere if node.target in FORMS else changed.for_cpus)[name] += 1
        logger.debug("%s, for the %s: %s", node.name, goal, f"left, {left}" if left else "rewritten")
    program.graph.eliminate_dead_code()
    program.graph.lint()
    program.recompile()
    return changed


def keep_requantizations_apart(program: GraphModule) -> int:
    """Put a barrier at every change of quantization parameters, in place, and return how many there are.

    The converter treats a requantized tensor as the tensor itself, and refuses where an operator that has to keep its
    parameters, such as PAD or CONCATENATION, is next to it. Behind the barrier it makes a DEQUANTIZE and a
    QUANTIZE of the change.
    """
    changes = [
        node
        for node in program.graph.find_nodes(op="call_function", target=quantize)
        if calls(arguments(node)[0], dequantize) and arguments(arguments(node)[0])[1:3] != arguments(node)[1:3]
    ]
    for node in changes:
        with program.graph.inserting_before(node):
            node.update_arg(0, held(program.graph, arguments(node)[0]))
        logger.debug("%s: parameters change through float", node.name)
    program.recompile()
    return len(changes)


def _max_pool(program: GraphModule, node: Node) -> str | None:
    x, kernel, stride, padding, dilation, ceil_mode = arguments(node, None, None, [], 0, 1, False)
    height, width = (padding, padding) if isinstance(padding, int) else (padding[0], padding[-1])
    if not (height or width):
        return "it pads nothing"
    if ceil_mode or not _never_negative(x):
        return "its windows or values do not allow zeros as padding"
    graph = program.graph
    with graph.inserting_before(node):
        padded = graph.call_function(aten.constant_pad_nd.default, (x, [width, width, height, height], 0.0))
        padded = through_int8_like(graph, padded, x)
        node.args = (padded, kernel, stride, 0, dilation, ceil_mode)
    return None


def _never_negative(x: Node) -> bool:
    if x.target in (quantize, dequantize):  # zero has an integer, so rounding keeps the sign
        return arguments(x)[2] == QMIN or _never_negative(arguments(x)[0])
    return x.target in (aten.relu.default, aten.relu_.default, aten.relu6.default)


def _avg_pool(program: GraphModule, node: Node) -> str | None:
    if not between_quantizers(node):
        return NOT_BETWEEN_INTEGERS
    x, kernel, stride, padding, ceil_mode, counts, divisor = arguments(node, None, None, [], 0, False, True, None)
    if ceil_mode or divisor is not None or (padding not in (0, [0], [0, 0]) and not counts):
        return "it does not divide all windows by their size"
    height, width = (kernel, kernel) if isinstance(kernel, int) else (kernel[0], kernel[-1])
    channels = shape_of(node)[1]
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
        add_constant(program, f"{name}_weight", torch.full((channels, 1, height, width), mean)),
        add_constant(program, f"{name}_scales", torch.full((channels,), mean / QMAX)),
        add_constant(program, f"{name}_zero_points", torch.zeros(channels, dtype=torch.int64)),
    )
    settings = (0, -QMAX, QMAX, torch.int8)
    quantized = program.graph.call_function(quantize_per_channel, (*values, *settings))
    return program.graph.call_function(dequantize_per_channel, (quantized, *values[1:], *settings))


def _mean(program: GraphModule, node: Node) -> str | None:
    x, dimensions, keep = arguments(node, None, None, False)
    if not between_quantizers(node):
        return NOT_BETWEEN_INTEGERS
    if len(shape_of(x)) != 4 or {axis % 4 for axis in dimensions} != {2, 3}:
        return "it is not over height and width"
    graph = program.graph
    with graph.inserting_before(node):
        pooled = graph.call_function(aten.adaptive_avg_pool2d.default, (x, [1, 1]))
        if not keep:
            integers = through_int8_like(graph, pooled, next(iter(node.users)))
            pooled = graph.call_function(aten.flatten.using_ints, (integers, 1))
    node.replace_all_uses_with(pooled)
    return None


def _first_convolution(program: GraphModule, node: Node) -> str | None:
    x, _, bias, stride, padding, dilation, groups = arguments(node, None, None, None, [1, 1], [0, 0], [1, 1], 1)
    if not _reads_an_input(x) or not has_own_quantized_weight(node):
        return "it does not read an input, or shares its weight"
    batch, channels, height, width = shape_of(x)
    weight, scales = (value_of(program, source) for source in arguments(arguments(arguments(node)[1])[0])[:2])
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
        packed = through_int8_like(graph, pairs, x)
        edges = [0, 0, left, right, padding[0], bottom]
        padded = through_int8_like(graph, graph.call_function(aten.constant_pad_nd.default, (packed, edges, 0.0)), x)
        padded = graph.call_function(aten.permute.default, (padded, [0, 3, 1, 2]))
    replace_weight(program, node, paired, scales)
    node.args = (padded, arguments(node)[1], bias, [stride[0], 1], [0, 0], [1, 1], 1)
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


def _in_float(program: GraphModule, node: Node) -> str | None:
    if not all(calls(source, dequantize) for source in node.all_input_nodes):
        return NOT_BETWEEN_INTEGERS
    for user in list(node.users):
        with program.graph.inserting_before(user):
            user.replace_input_with(node, held(program.graph, node))
    return None


def _factor(program: GraphModule, node: Node) -> str | None:
    """A product with a number, where matrix products read its integers."""
    readers = [reader for quantizer in node.users for integers in quantizer.users for reader in integers.users]
    matrix_products = bool(readers) and all(reader.target in MATRIX_PRODUCTS for reader in readers)
    if not matrix_products or not isinstance(arguments(node)[1], float):
        return "it is not the factor of a matrix product"
    return _in_float(program, node)


def _norm(program: GraphModule, node: Node) -> str | None:
    changed = False
    for source in node.all_input_nodes[1:]:
        quantizer = arguments(source)[0] if calls(source, dequantize) else None
        if quantizer is None or arguments(quantizer)[0].op != "get_attr":
            continue
        integers = quantize(value_of(program, arguments(quantizer)[0]), *arguments(quantizer)[1:])
        with program.graph.inserting_before(node):
            values = add_constant(program, f"{source.name}_values", dequantize(integers, *arguments(source)[1:]))
        node.replace_input_with(source, values)
        changed = True
    return None if changed else "its parameters are no quantized constants"


def _reads_an_input(x: Node) -> bool:
    quantizer = arguments(x)[0] if calls(x, dequantize) else None
    return quantizer is not None and calls(quantizer, quantize) and arguments(quantizer)[0].op == "placeholder"


FORMS: dict[object, Form] = {
    aten.max_pool2d.default: _max_pool,
    aten.mean.dim: _mean,
    **dict.fromkeys(NORMS, _norm),
}
"""What every integer runtime gets."""

CPU_FORMS: dict[object, Form] = {
    aten.avg_pool2d.default: _avg_pool,
    aten.conv2d.default: _first_convolution,
    **dict.fromkeys((*MATRIX_PRODUCTS, aten.softmax.int, aten.gelu.default), _in_float),
    **dict.fromkeys((aten.hardswish.default, aten.hardswish_.default), _in_float),
    aten.mul.Tensor: _factor,
}
"""What XNNPACK gets besides; an NPU has these operators."""
