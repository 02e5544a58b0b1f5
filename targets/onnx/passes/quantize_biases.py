"""Store biases as int32 in the accumulator's scale.

Rule: the constant float bias of a ``Conv`` or ``Gemm`` whose activation and weight are dequantized becomes
``DequantizeLinear(int32 initializer, s_x * s_w)``, zero point 0.

Integer kernels add the bias to the int32 accumulator, whose unit is ``s_x * s_w``; a float bias blocks the fusion. The
rounding error is at most half that unit. A channel whose weights are so small that its bias would not fit in int32
gets a weight scale that is a power of two larger, and loses that many bits of (tiny) weights.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from targets.onnx.qdq import Array, constant, dequantized_from, encoding, initializer, label

logger = logging.getLogger(__name__)

LARGEST_BIAS = 2**30  # leaves room for the products that are added to the bias


class QuantizeBiases(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        modified = False
        for node in list(graph):
            if node.op_type not in ("Conv", "Gemm") or len(node.inputs) < 3:
                continue
            activation, weight = dequantized_from(node.inputs[0]), dequantized_from(node.inputs[1])
            of_x, of_w, bias = encoding(activation), encoding(weight), constant(node.inputs[2])
            weights = None if weight is None else constant(weight.inputs[0])
            if bias is None:
                continue
            if weight is None or weights is None or of_w is None or of_x is None or of_x.scale.ndim != 0:
                logger.debug("%s: bias left in float, the activation or the weight is not quantized", label(node))
                continue
            bias = np.broadcast_to(bias.reshape(-1), (weights.shape[_channel_axis(node)],)).astype(np.float64)
            scale = np.broadcast_to(of_w.scale, bias.shape)
            shift = overflow_shift(bias, of_x.scale, scale)
            if shift.any():
                weight = _coarser(graph, weight, weights, of_w.axis, scale, shift)
                node.replace_input_with(1, weight.outputs[0])
                scale = scale * np.exp2(shift).astype(np.float32)
            unit = (of_x.scale.astype(np.float64) * scale.astype(np.float64)).astype(np.float32)
            integers = np.rint(bias / unit.astype(np.float64)).astype(np.int32)
            name = node.inputs[2].name  # type: ignore[union-attr]  # a constant has a value
            stored = ir.node(
                "DequantizeLinear",
                [initializer(graph, f"{name}.int32", integers), initializer(graph, f"{name}.scale", unit)],
                {"axis": 0},
            )
            graph.insert_before(node, stored)
            node.replace_input_with(2, stored.outputs[0])
            coarser = np.count_nonzero(shift)
            logger.debug("%s: bias stored as int32, weights of %d channels coarser for it", label(node), coarser)
            modified = True
        return ir.passes.PassResult(model, modified)


def overflow_shift(bias: Array, activation_scale: Array, weight_scale: Array) -> Array:
    """How many bits coarser each channel's weights must be for its bias to fit in int32; mostly zeros.

    >>> overflow_shift(np.array([1.0, 8.0]), np.float32(2**-6), np.float32([2**-7, 2**-23])).tolist()
    [0, 2]
    """
    magnitude = np.abs(bias) / (activation_scale.astype(np.float64) * weight_scale.astype(np.float64))
    shift: Array = np.ceil(np.log2(np.maximum(magnitude / LARGEST_BIAS, 1))).astype(np.int64)
    return shift


def _channel_axis(node: ir.Node) -> int:
    """The axis of a weight's output channels."""
    return 0 if node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1 else 1


def _coarser(graph: ir.Graph, weight: ir.Node, integers: Array, axis: int, scale: Array, shift: Array) -> ir.Node:
    """A second DequantizeLinear, of the same weights in larger steps."""
    along = [1] * integers.ndim
    along[axis] = -1
    rounded = np.rint(integers / np.exp2(shift).reshape(along)).astype(integers.dtype)
    name = weight.inputs[0].name  # type: ignore[union-attr]  # DequantizeLinear has an input
    replacement = ir.node(
        "DequantizeLinear",
        [
            initializer(graph, f"{name}.coarser", rounded),
            initializer(graph, f"{name}.coarser.scale", (scale * np.exp2(shift)).astype(np.float32)),
            weight.inputs[2],
        ],
        {"axis": axis},
    )
    replacement.outputs[0].shape = weight.outputs[0].shape
    replacement.outputs[0].type = weight.outputs[0].type
    graph.insert_before(weight, replacement)
    return replacement
