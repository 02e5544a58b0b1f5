"""Remove quantization that changes nothing.

Rules:
1. ``QuantizeLinear(DequantizeLinear(q))`` with the same encoding is ``q``.
2. ``QuantizeLinear(DequantizeLinear(q) * c)`` with a constant number c is ``q`` where every one of the 256 integers
   comes back as itself: the scales differ by the factor c. Attention scales and hardsigmoid's sixth are examples.
3. ``QuantizeLinear(Reshape-like(DequantizeLinear(q)))`` keeps its place: onnxruntime moves such operators onto the
   integers itself, and needs the pair around them to do so.

All are exact: an integer becomes its real number and the same integer again.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from targets.onnx.qdq import Encoding, constant, dequantized_from, encoding, label

logger = logging.getLogger(__name__)


class RemoveRequantization(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for quantize in list(model.graph):
            if quantize.op_type != "QuantizeLinear":
                continue
            value, factor = _without_factor(quantize.inputs[0])
            dequantize, rule = dequantized_from(value), encoding(quantize)
            before = encoding(dequantize)
            if dequantize is None or rule is None or before is None:
                continue
            if not returns(before, factor, rule):
                logger.debug("%s: left, it changes integers", label(quantize))
                continue
            integers = dequantize.inputs[0]
            assert integers is not None
            quantize.outputs[0].replace_all_uses_with(integers)
            logger.debug("%s: removed, every integer comes back as itself", label(quantize))
            model.graph.remove(quantize, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified)


def returns(before: Encoding, factor: float, after: Encoding) -> bool:
    """Whether each integer of one encoding comes back as itself after a product and the other encoding.

    >>> half = Encoding(np.float32(0.5), np.uint8(3), 1)
    >>> returns(half, 0.5, Encoding(np.float32(0.25), np.uint8(3), 1)), returns(half, 0.5, half)
    (True, False)
    """
    if factor == 1:
        return after.same_as(before)
    if before.scale.ndim or after.scale.ndim or before.zero_point.dtype != after.zero_point.dtype:
        return False
    integers = np.arange(before.lowest, before.highest + 1)
    reals = (integers - before.zero_point.astype(np.int64)).astype(np.float32) * before.scale * np.float32(factor)
    again = np.clip(np.rint(reals / after.scale) + after.zero_point, after.lowest, after.highest)
    return bool(np.array_equal(again, integers))


def _without_factor(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """The other operand of a product with a constant, and the constant; the value itself and 1 for anything else."""
    product = value.producer() if value is not None else None
    if product is None or product.op_type != "Mul":
        return value, 1.0
    for operand, other in (product.inputs, reversed(product.inputs)):
        number = constant(other)
        if number is not None and number.ndim == 0:
            return operand, float(number)
    return value, 1.0
