"""Transposed convolutions as convolutions whose outputs interleave.

The converter computes a transposed convolution of integers in float, and knows only paddings ``VALID`` and ``SAME``.
With stride ``s``, the output at position ``s * j + r - crop`` reads only the taps ``t`` with
``s * i + dilation * t - padding == s * j + r - crop``, from the inputs ``i = j + a`` for a few offsets ``a``. So a
convolution with a set of output channels for each remainder ``r`` gives all outputs, and a transpose interleaves them:
integers from end to end, for any stride, padding, output padding, dilation and number of groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from targets.tflite.graph import (
    CLAMPS,
    Step,
    add_constant,
    arguments,
    aten,
    calls,
    dequantize,
    forget_example,
    has_own_quantized_weight,
    moved,
    quantize,
    replace_weight,
    shape_of,
    value_of,
)

TRANSPOSED: dict[Any, Any] = {
    aten.conv_transpose1d.default: aten.conv1d.default,
    aten.conv_transpose2d.input: aten.conv2d.default,
}


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis of a transposed convolution, written as a convolution.

    Attributes:
        stride: Outputs for each position of the convolution.
        taps: ``(stride, inputs read, kernel) float32``, 1 where an output with that remainder reads that tap there.
        before: Inputs to pad before the first one; negative ones are cut off.
        after: The same behind the last one.
        positions: Of the convolution.
        crop: Outputs to drop at the start.
        size: Outputs to keep.
    """

    stride: int
    taps: Tensor
    before: int
    after: int
    positions: int
    crop: int
    size: int


def axis_of(*, inputs: int, size: int, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
    """The axis with the fewest inputs to read, and of those the one that crops least.

    >>> axis = axis_of(inputs=7, size=14, kernel=3, stride=2, padding=1, dilation=1)
    >>> axis.taps.tolist()  # output padding 1
    [[[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]]
    >>> axis.before, axis.after, axis.positions, axis.crop
    (0, 1, 7, 0)
    """

    def offsets(crop: int) -> dict[tuple[int, int], int]:
        """The offset of the input that each output remainder reads through each tap."""
        shifted = padding - crop
        return {
            (remainder, tap): (remainder + shifted - dilation * tap) // stride
            for remainder in range(stride)
            for tap in range(kernel)
            if (remainder + shifted - dilation * tap) % stride == 0
        }

    def width(crop: int) -> int:
        found = offsets(crop).values()
        return max(found) - min(found)

    crop = min(range(stride), key=lambda candidate: (width(candidate), candidate))
    found = offsets(crop)
    low, high = min(found.values()), max(found.values())
    taps = torch.zeros(stride, high - low + 1, kernel)
    for (remainder, tap), offset in found.items():
        taps[remainder, offset - low, tap] = 1
    positions = math.ceil((size + crop) / stride)
    return Axis(stride, taps, -low, positions + high - inputs, positions, crop, size)


def transposed_convolutions(program: GraphModule) -> int:
    """Rewrite the transposed convolutions that the converter cannot keep as they are; how many there were."""
    nodes = [node for node in program.graph.nodes if node.target in TRANSPOSED]
    return sum(_to_convolution(program, node) for node in nodes)


def _to_convolution(program: GraphModule, node: Node) -> bool:
    x, weight, bias, stride, padding, _, groups, dilation = arguments(node, None, None, None, 1, 0, 0, 1, 1)
    quantized = has_own_quantized_weight(node)
    if not (quantized or weight.op == "get_attr") or not (bias is None or bias.op == "get_attr"):
        return False
    kernel, inputs, sizes = (shape_of(value)[2:] for value in (weight, x, node))
    settings = (_per_axis(each, len(kernel)) for each in (stride, padding, dilation))
    rows = list(zip(inputs, sizes, kernel, *settings, strict=True))
    if not quantized and groups == 1 and _converter_knows(rows):
        return False
    axes = [
        axis_of(inputs=count, size=size, kernel=taps, stride=step, padding=pad, dilation=apart)
        for count, size, taps, step, pad, apart in rows
    ]
    _give_weights(program, node, axes, groups)
    _convolve(program, node, axes, groups)
    _interleave(program, node, axes, groups)
    return True


def _converter_knows(rows: list[tuple[int, ...]]) -> bool:
    """Whether this is a TRANSPOSE_CONV of TFLite: padding ``VALID`` or ``SAME``, no dilation.

    Args:
        rows: Of each axis: inputs, outputs, kernel, stride, padding, dilation.
    """
    valid = all(pad == 0 and size == (count - 1) * step + taps for count, size, taps, step, pad, _ in rows)
    same = all(size == count * step and pad == (taps - step) / 2 for count, size, taps, step, pad, _ in rows)
    return all(row[-1] == 1 for row in rows) and (valid or same)


def _give_weights(program: GraphModule, node: Node, axes: list[Axis], groups: int) -> None:
    """Replace weight ``(C_in, C_out / groups, …)`` and bias by those of the convolution."""
    _, weight, bias = arguments(node, None, None, None)[:3]
    quantized = has_own_quantized_weight(node)
    constant = arguments(arguments(weight)[0])[0] if quantized else weight
    values = convolution_weight(value_of(program, constant), axes, groups)
    remainders = math.prod(axis.stride for axis in axes)

    def spread(channels: Tensor) -> Tensor:
        """Numbers of the output channels, or of those of one group, for each channel of the convolution."""
        return channels.reshape(-1, 1, each).expand(groups, remainders, each).reshape(-1)

    each = shape_of(weight)[1]
    if quantized:
        scales = value_of(program, arguments(arguments(weight)[0])[1])
        replace_weight(program, node, values, spread(scales), axis=0)
    else:
        with program.graph.inserting_before(node):
            node.update_arg(1, add_constant(program, f"{node.name}_weight", values))
    if bias is not None:
        with program.graph.inserting_before(node):
            node.update_arg(2, add_constant(program, f"{node.name}_bias", spread(value_of(program, bias))))


def convolution_weight(weight: Tensor, axes: list[Axis], groups: int) -> Tensor:
    """The convolution's weight ``(groups * remainders * C, C_in / groups, …)``, for one of ``(C_in, C, …)``."""
    parts = weight.reshape(groups, -1, *weight.shape[1:])
    if len(axes) == 1:
        (along,) = (axis.taps for axis in axes)
        spread = torch.einsum("gick,ruk->grciu", parts, along)
    else:
        down, across = (axis.taps for axis in axes)
        spread = torch.einsum("gickl,ruk,svl->grsciuv", parts, down, across)
    return spread.reshape(-1, *spread.shape[-1 - len(axes) :])


def _convolve(program: GraphModule, node: Node, axes: list[Axis], groups: int) -> None:
    x, weight, bias = arguments(node, None, None, None)[:3]
    pads = [(axis.before, axis.after) for axis in axes]
    if any(before != after or before < 0 for before, after in pads):
        widths = [width for pair in reversed(pads) for width in pair]
        with program.graph.inserting_before(node):
            x = moved(program.graph, x, [(aten.constant_pad_nd.default, (widths, 0.0))], end=True)
        pads = [(0, 0)] * len(pads)
    ones = [1] * len(axes)
    node.target = TRANSPOSED[node.target]
    node.args = (x, weight, bias, ones, [before for before, _ in pads], ones, groups)


def _interleave(program: GraphModule, node: Node, axes: list[Axis], groups: int) -> None:
    """Put the outputs in their places, behind the clamps that fuse into the convolution and its quantizer."""
    channels = shape_of(node)[1]
    last = forget_example(node)
    while len(last.users) == 1 and (reader := next(iter(last.users))).target in CLAMPS:
        last = forget_example(reader)
    steps = interleaving(axes, groups, channels // groups)
    quantizers = [reader for reader in last.users if calls(reader, quantize)]
    if len(quantizers) == len(last.users) == 1:
        last = forget_example(quantizers[0])
        readers, parameters = list(last.users), arguments(last)[1:]
        with program.graph.inserting_after(last):
            start = program.graph.call_function(dequantize, (last, *parameters))
        with program.graph.inserting_after(start):
            anchor = program.graph.call_function(quantize, (start, *parameters))
        with program.graph.inserting_before(anchor):
            anchor.update_arg(0, moved(program.graph, start, steps))
        for reader in readers:
            reader.replace_input_with(last, anchor)
        return
    readers = list(last.users)
    first = next(reader for reader in program.graph.nodes if reader in last.users)
    with program.graph.inserting_before(first):
        value = moved(program.graph, last, steps)
    for reader in readers:
        reader.replace_input_with(last, value)


def interleaving(axes: list[Axis], groups: int, channels: int) -> list[Step]:
    """The moves from ``(1, groups * remainders * C, …)`` to the transposed convolution's output.

    Args:
        channels: Of one group of the output.
    """
    spatial = range(len(axes))
    parts = {f"position {index}": axes[index].positions for index in spatial}
    parts |= {"group": groups} | {f"remainder {index}": axes[index].stride for index in spatial} | {"channel": channels}
    parts = {name: size for name, size in parts.items() if size > 1}
    order = [name for index in spatial for name in (f"position {index}", f"remainder {index}")] + ["group", "channel"]
    permutation = [list(parts).index(name) for name in order if name in parts]
    steps: list[Step] = [(aten.permute.default, ([0, *(index + 2 for index in spatial), 1],))]
    whole = [axis.positions * axis.stride for axis in axes]
    if any(axis.stride > 1 for axis in axes):
        if permutation != sorted(permutation):
            steps += [(aten.reshape.default, (list(parts.values()),)), (aten.permute.default, (permutation,))]
        steps.append((aten.reshape.default, ([1, *whole, groups * channels],)))
    steps += [
        (aten.slice.Tensor, (index + 1, axis.crop, axis.crop + axis.size))
        for index, (axis, size) in enumerate(zip(axes, whole, strict=True))
        if axis.crop or axis.size != size
    ]
    return [*steps, (aten.permute.default, ([0, len(axes) + 1, *(index + 1 for index in spatial)],))]


def _per_axis(value: Any, spatial: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * spatial if len(values) == 1 else values
