"""The table of MIL operators: what the interpreter can run, and where each is defined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from targets.coreml.interpreter.operators import (
    activation,
    convolution,
    creation,
    elementwise,
    indexing,
    layout,
    linear,
    normalization,
    quantization,
    recurrent,
    reduction,
    resizing,
)

DEFINITIONS = "https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html"


@dataclass(frozen=True, slots=True)
class MilOperator:
    """One MIL operator.

    Attributes:
        run: Takes the operator's inputs by their MIL names and gives one value per output.
        definition: The module of coremltools' ``mil.ops.defs`` that defines it, in its first opset.
    """

    run: Callable[..., Any]
    definition: str

    @property
    def source(self) -> str:
        """The published definition."""
        return f"{DEFINITIONS}#coremltools.converters.mil.mil.ops.defs.{self.definition}"


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """A function of one tensor under MIL's name for it, ``x``."""

    def run(x: Tensor) -> Tensor:
        return function(x)

    return run


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A function of two tensors under MIL's names for them, ``x`` and ``y``; they are broadcast."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)

    return run


def _defined_in(module: str, functions: dict[str, Callable[..., Any]]) -> dict[str, MilOperator]:
    return {name: MilOperator(function, f"{module}.{name}") for name, function in functions.items()}


_axes = reduction.over_axes

OPERATORS: dict[str, MilOperator] = {
    **_defined_in(
        "iOS15.elementwise_unary",
        {
            "abs": _unary(torch.abs),
            "acos": _unary(torch.acos),
            "asin": _unary(torch.asin),
            "atan": _unary(torch.atan),
            "atanh": _unary(torch.atanh),
            "cast": elementwise.cast,
            "ceil": _unary(torch.ceil),
            "clip": elementwise.clip,
            "cos": _unary(torch.cos),
            "cosh": _unary(torch.cosh),
            "erf": _unary(torch.erf),
            "exp": _unary(torch.exp),
            "exp2": _unary(torch.exp2),
            "floor": _unary(torch.floor),
            "inverse": elementwise.inverse,
            "log": elementwise.log,
            "logical_not": _unary(torch.logical_not),
            "round": _unary(torch.round),
            "rsqrt": elementwise.rsqrt,
            "sign": _unary(torch.sign),
            "sin": _unary(torch.sin),
            "sinh": _unary(torch.sinh),
            "sqrt": _unary(torch.sqrt),
            "square": _unary(torch.square),
            "tan": _unary(torch.tan),
            "tanh": _unary(torch.tanh),
            "threshold": elementwise.threshold,
        },
    ),
    **_defined_in(
        "iOS15.elementwise_binary",
        {
            "add": _binary(torch.add),
            "equal": _binary(torch.eq),
            "floor_div": elementwise.floor_div,
            "greater": _binary(torch.gt),
            "greater_equal": _binary(torch.ge),
            "less": _binary(torch.lt),
            "less_equal": _binary(torch.le),
            "logical_and": _binary(torch.logical_and),
            "logical_or": _binary(torch.logical_or),
            "logical_xor": _binary(torch.logical_xor),
            "maximum": _binary(torch.maximum),
            "minimum": _binary(torch.minimum),
            "mod": _binary(torch.remainder),
            "mul": _binary(torch.mul),
            "not_equal": _binary(torch.ne),
            "pow": _binary(torch.pow),
            "real_div": elementwise.real_div,
            "sub": _binary(torch.sub),
        },
    ),
    **_defined_in(
        "iOS15.activation",
        {
            "clamped_relu": activation.clamped_relu,
            "elu": activation.elu,
            "gelu": activation.gelu,
            "leaky_relu": activation.leaky_relu,
            "linear_activation": activation.linear_activation,
            "prelu": activation.prelu,
            "relu": _unary(torch.relu),
            "relu6": activation.relu6,
            "scaled_tanh": activation.scaled_tanh,
            "sigmoid": _unary(torch.sigmoid),
            "sigmoid_hard": activation.sigmoid_hard,
            "silu": _unary(torch.nn.functional.silu),
            "softmax": activation.softmax,
            "softplus": activation.softplus,
            "softplus_parametric": activation.softplus_parametric,
            "softsign": _unary(torch.nn.functional.softsign),
            "thresholded_relu": activation.thresholded_relu,
        },
    ),
    **_defined_in("iOS15.conv", {"conv": convolution.conv, "conv_transpose": convolution.conv_transpose}),
    **_defined_in(
        "iOS15.pool",
        {"avg_pool": convolution.avg_pool, "l2_pool": convolution.l2_pool, "max_pool": convolution.max_pool},
    ),
    **_defined_in("iOS15.linear", {"einsum": linear.einsum, "linear": linear.linear, "matmul": linear.matmul}),
    **_defined_in("iOS18.transformers", {"scaled_dot_product_attention": linear.scaled_dot_product_attention}),
    **_defined_in(
        "iOS15.normalization",
        {
            "batch_norm": normalization.batch_norm,
            "instance_norm": normalization.instance_norm,
            "l2_norm": normalization.l2_norm,
            "layer_norm": normalization.layer_norm,
            "local_response_norm": normalization.local_response_norm,
        },
    ),
    **_defined_in(
        "iOS15.reduction",
        {
            "reduce_argmax": reduction.argmax,
            "reduce_argmin": reduction.argmin,
            "reduce_l1_norm": _axes(lambda x, axes, keep: x.abs().sum(axes, keep)),
            "reduce_l2_norm": _axes(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
            "reduce_log_sum": _axes(lambda x, axes, keep: x.sum(axes, keep).log()),
            "reduce_log_sum_exp": _axes(lambda x, axes, keep: torch.logsumexp(x, axes, keep)),
            "reduce_max": _axes(lambda x, axes, keep: torch.amax(x, axes, keep)),
            "reduce_mean": _axes(reduction.mean),
            "reduce_min": _axes(lambda x, axes, keep: torch.amin(x, axes, keep)),
            "reduce_prod": _axes(reduction.product),
            "reduce_sum": _axes(lambda x, axes, keep: x.sum(axes, keep)),
            "reduce_sum_square": _axes(lambda x, axes, keep: x.square().sum(axes, keep)),
        },
    ),
    **_defined_in(
        "iOS15.tensor_transformation",
        {
            "batch_to_space": layout.batch_to_space,
            "depth_to_space": layout.depth_to_space,
            "expand_dims": layout.expand_dims,
            "pixel_shuffle": layout.pixel_shuffle,
            "reshape": layout.reshape,
            "reverse": layout.reverse,
            "reverse_sequence": layout.reverse_sequence,
            "slice_by_index": layout.slice_by_index,
            "slice_by_size": layout.slice_by_size,
            "sliding_windows": layout.sliding_windows,
            "space_to_batch": layout.space_to_batch,
            "space_to_depth": layout.space_to_depth,
            "squeeze": layout.squeeze,
            "transpose": layout.transpose,
        },
    ),
    **_defined_in(
        "iOS16.tensor_transformation",
        {"pixel_unshuffle": layout.pixel_unshuffle, "reshape_like": layout.reshape_like},
    ),
    **_defined_in("iOS18.tensor_transformation", {"slice_update": layout.slice_update}),
    **_defined_in(
        "iOS15.tensor_operation",
        {
            "argsort": creation.argsort,
            "band_part": creation.band_part,
            "concat": layout.concat,
            "cumsum": creation.cumsum,
            "fill": creation.fill,
            "flatten2d": layout.flatten2d,
            "identity": layout.identity,
            "non_zero": creation.non_zero,
            "one_hot": creation.one_hot,
            "pad": layout.pad,
            "range_1d": creation.range_1d,
            "shape": layout.shape,
            "split": layout.split,
            "stack": layout.stack,
            "tile": layout.tile,
            "topk": creation.topk,
        },
    ),
    **_defined_in("iOS16.tensor_operation", {"fill_like": creation.fill_like}),
    **_defined_in(
        "iOS15.scatter_gather",
        {
            "gather": indexing.gather,
            "gather_along_axis": indexing.gather_along_axis,
            "gather_nd": indexing.gather_nd,
            "scatter": indexing.scatter,
            "scatter_along_axis": indexing.scatter_along_axis,
            "scatter_nd": indexing.scatter_nd,
        },
    ),
    **_defined_in(
        "iOS15.image_resizing",
        {
            "affine": resizing.affine,
            "crop": layout.crop,
            "resample": resizing.resample,
            "resize_bilinear": resizing.resize_bilinear,
            "resize_nearest_neighbor": resizing.resize_nearest_neighbor,
            "upsample_bilinear": resizing.upsample_bilinear,
            "upsample_nearest_neighbor": resizing.upsample_nearest_neighbor,
        },
    ),
    **_defined_in("iOS17.image_resizing", {"resize": resizing.resize}),
    **_defined_in("iOS15.recurrent", {"gru": recurrent.gru, "lstm": recurrent.lstm, "rnn": recurrent.rnn}),
    **_defined_in(
        "iOS15.control_flow",
        {
            "list_gather": creation.list_gather,
            "list_length": creation.list_length,
            "list_read": creation.list_read,
            "list_scatter": creation.list_scatter,
            "list_write": creation.list_write,
            "make_list": creation.make_list,
            "select": elementwise.select,
        },
    ),
    **_defined_in("iOS17.quantization_ops", {"dequantize": quantization.dequantize, "quantize": quantization.quantize}),
    **_defined_in(
        "iOS16.constexpr_ops",
        {
            "constexpr_affine_dequantize": quantization.constexpr_affine_dequantize,
            "constexpr_cast": quantization.constexpr_cast,
            "constexpr_lut_to_dense": quantization.constexpr_lut_to_dense,
            "constexpr_sparse_to_dense": quantization.constexpr_sparse_to_dense,
        },
    ),
    **_defined_in(
        "iOS18.compression",
        {
            "constexpr_blockwise_shift_scale": quantization.constexpr_blockwise_shift_scale,
            "constexpr_lut_to_sparse": quantization.constexpr_lut_to_sparse,
            "constexpr_sparse_blockwise_shift_scale": quantization.constexpr_sparse_blockwise_shift_scale,
        },
    ),
}
"""Every operator by its MIL name. ``const``, ``cond``, ``while_loop`` and ``classify`` belong to the executor."""
