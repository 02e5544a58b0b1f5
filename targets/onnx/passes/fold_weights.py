"""Store quantized weights as integers.

Rule: ``DequantizeLinear(Clip?(QuantizeLinear(constant)))`` becomes ``DequantizeLinear(int8 initializer)``.

The exported program quantizes its float weights in every run. The integers are computed here as PyTorch computes
them, by a product with the reciprocal of the scale, so that they are the program's own to the last bit.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from targets.onnx.qdq import Array, Encoding, constant, encoding, initializer, label

logger = logging.getLogger(__name__)


class FoldWeights(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        modified = False
        for quantize in list(graph):
            weight = constant(quantize.inputs[0]) if quantize.op_type == "QuantizeLinear" else None
            rule = encoding(quantize)
            if weight is None:
                continue
            if rule is None:
                logger.debug("%s: left, its scale or zero point is computed", label(quantize))
                continue
            last, low, high = _clipped(quantize.outputs[0], rule)
            integers = _quantize(weight, rule, low, high)
            source = quantize.inputs[0]
            assert source is not None
            stored = initializer(graph, f"{source.name}.int8", integers)
            for node, index in list(last.uses()):
                node.replace_input_with(index, stored)
                if node.op_type == "DequantizeLinear":
                    node.replace_input_with(1, initializer(graph, f"{source.name}.scale", rule.scale))
                    node.replace_input_with(2, initializer(graph, f"{source.name}.zero_point", rule.zero_point))
            logger.debug("%s: stored as %s %s", label(quantize), integers.dtype, list(integers.shape))
            modified = True
        return ir.passes.PassResult(model, modified)


def _clipped(integers: ir.Value, rule: Encoding) -> tuple[ir.Value, int, int]:
    """The value behind a Clip that narrows the integers (to -127…127, say), and the range they end up in."""
    uses = list(integers.uses())
    if len(uses) == 1 and uses[0].node.op_type == "Clip":
        clip = uses[0].node
        low, high = constant(clip.inputs[1]), constant(clip.inputs[2])
        if low is not None and high is not None:
            return clip.outputs[0], int(low), int(high)
    return integers, rule.lowest, rule.highest


def _quantize(weight: Array, rule: Encoding, low: int, high: int) -> Array:
    """``round(w * (1 / scale)) + zero_point`` along the channel axis, clipped to ``low…high``."""
    scale, zero_point = rule.scale.astype(np.float32), rule.zero_point.astype(np.int32)
    if scale.ndim == 1:
        along = [1] * weight.ndim
        along[rule.axis] = -1
        scale, zero_point = scale.reshape(along), zero_point.reshape(along)
    integers = np.rint(weight * (np.float32(1) / scale)) + zero_point
    clipped: Array = np.clip(integers, low, high).astype(rule.zero_point.dtype)
    return clipped
