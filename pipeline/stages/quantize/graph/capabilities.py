"""What integer kernels can do, as data: which operators run in int8, and how their quantization parameters relate.

The rules hold what the int8 kernels of all targets have in common. They follow the LiteRT 8-bit quantization
specification (https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec), the strictest
of them; ONNX Runtime (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html) and Core ML
(https://apple.github.io/coremltools/docs-guides/source/opt-quantization-overview.html) accept whatever it allows.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from torch.fx import Node

aten = torch.ops.aten

Operator = Callable[..., Any]
"""What a node calls: an ATen overload such as ``aten.conv2d.default``, or ``operator.getitem``; its identity."""

LITERT_SPEC = "https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec"
LITERT_KERNELS = "https://github.com/tensorflow/tensorflow/tree/master/tensorflow/lite/kernels"
ORT_OPERATORS = "https://github.com/microsoft/onnxruntime/tree/main/onnxruntime/python/tools/quantization/operators"

Kind = Literal["weighted", "clamp", "computes", "moves", "fixed"]
"""How an operator treats quantization parameters.

- ``weighted``: argument 0 is an activation, argument 1 a weight with one scale per output channel, argument 2 a bias.
- ``clamp``: fuses into the operator before it, so that one range, taken after the clamp, serves both.
- ``computes``: inputs and output each have their own parameters.
- ``moves``: only moves or selects values, so inputs and output share one set of parameters.
- ``fixed``: the kernel prescribes the output's parameters.
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table.

    Attributes:
        channel_axis: Axis of a weight's output channels (kind ``weighted``).
        scale: The output scale that the kernel prescribes (kind ``fixed``).
        zero_point: The output zero point that the kernel prescribes (kind ``fixed``).
        source: Page that documents this behaviour of integer kernels.
    """

    operators: tuple[Operator, ...]
    kind: Kind
    channel_axis: int = 0
    scale: float = 0.0
    zero_point: int = 0
    source: str = LITERT_SPEC


RULES = (
    Rule((aten.conv1d.default, aten.conv2d.default, aten.linear.default), "weighted"),
    Rule((aten.conv_transpose1d.default, aten.conv_transpose2d.input), "weighted", channel_axis=1),
    Rule((aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default), "clamp"),
    Rule((aten.clamp_min.default, aten.clamp_max.default), "clamp"),
    Rule((aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Scalar), "computes"),
    Rule((aten.mul.Tensor, aten.mul.Scalar), "computes"),
    Rule((aten.matmul.default, aten.bmm.default, aten.mm.default), "computes"),
    Rule((aten.mean.dim, aten.sum.dim_IntList), "computes", source=LITERT_KERNELS),
    Rule((aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default), "computes", source=LITERT_KERNELS),
    Rule((aten.leaky_relu.default, aten.hardswish.default), "computes", source=LITERT_KERNELS),
    Rule(
        (aten.gelu.default, aten.elu.default, aten.prelu.default),
        "computes",
        source=LITERT_KERNELS,
    ),
    Rule(
        (aten.layer_norm.default, aten.group_norm.default, aten.rms_norm.default),
        "computes",
        source=ORT_OPERATORS,
    ),
    Rule((aten.embedding.default,), "moves", source=ORT_OPERATORS),
    Rule((aten.avg_pool1d.default, aten.avg_pool2d.default), "moves"),
    Rule((aten.max_pool1d.default, aten.max_pool2d.default), "moves"),
    Rule((aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.amax.default), "moves"),
    Rule((aten.maximum.default, aten.minimum.default), "moves"),
    Rule((aten.upsample_nearest2d.vec, aten.upsample_nearest1d.vec, aten.upsample_bilinear2d.vec), "moves"),
    Rule((aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints), "moves"),
    Rule((aten.permute.default, aten.transpose.int, aten.t.default, aten.clone.default), "moves"),
    Rule((aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.unsqueeze.default), "moves"),
    Rule((aten.select.int, aten.slice.Tensor, aten.index_select.default, aten.gather.default), "moves"),
    Rule((aten.expand.default, aten.repeat.default, aten.flip.default, aten.roll.default), "moves"),
    Rule((aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.channel_shuffle.default), "moves"),
    Rule((aten.pad.default, aten.constant_pad_nd.default), "moves"),
    Rule((aten.cat.default, aten.stack.default), "moves"),
    Rule((operator.getitem,), "moves"),
    Rule((aten.sigmoid.default, aten.softmax.int), "fixed", scale=1 / 256, zero_point=-128),
    Rule((aten.tanh.default,), "fixed", scale=1 / 128, zero_point=0),
)

RULE_OF: Mapping[Operator, Rule] = MappingProxyType({each: rule for rule in RULES for each in rule.operators})
"""The rule of each operator; one without a rule stays in float."""

WEIGHTED = tuple(each for rule in RULES if rule.kind == "weighted" for each in rule.operators)
"""Convolutions, transposed convolutions and linear layers."""

SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int)
"""Operators that return several tensors; ``getitem`` selects one of them, and only moves it."""

CARRIES = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.expand.default,
    aten.clone.default,
    aten.dropout.default,
)
"""Operators that pass on every value of one tensor as it is."""

PADS = (aten.pad.default, aten.constant_pad_nd.default)
"""Operators that write values around a tensor."""

MAX_POOLS = (aten.max_pool1d.default, aten.max_pool2d.default)
"""Operators that never select a value below all others."""

SUMS = (aten.add.Tensor, aten.sub.Tensor)
"""Operators whose result's grid is as wide as the wider operand's."""

PRODUCTS = (
    *WEIGHTED,
    aten.matmul.default,
    aten.bmm.default,
    aten.mm.default,
    aten.baddbmm.default,
    aten.einsum.default,
)
"""Operators that multiply matrices, with weights or with each other."""

CREATES = (aten.zeros.default, aten.ones.default, aten.full.default)
"""Operators that make constants: quantized where an integer operator reads them."""

MASKS = (aten.where.self, aten.where.ScalarOther, aten.masked_fill.Scalar, aten.masked_fill.Tensor)
"""Operators that set masked attention scores to a value that softmax maps to zero."""


def rule_of(node: Node) -> Rule:
    """The table's row for an operator that has one."""
    return RULE_OF[operator_of(node)]


def kind_of(node: Node) -> Kind | None:
    """How an operator treats quantization parameters; None where it has no rule."""
    rule = RULE_OF.get(operator_of(node))
    return None if rule is None else rule.kind


def operator_of(node: Node) -> Operator:
    """What a node calls; for a node that calls no function, its target, which has no row in the table."""
    return cast("Operator", node.target)
