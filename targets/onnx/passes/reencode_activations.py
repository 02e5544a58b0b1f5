"""Re-encode int8 activations as uint8.

Rules:
1. In every ``QuantizeLinear`` whose int8 output is read by ``DequantizeLinear`` only, and in those readers, the zero
   point ``z`` becomes ``z + 128`` in uint8.
2. A constant (a position embedding, a class token) that only operators of `ALIKE` read becomes uint8, too: their
   integer kernels take operands of one type only.

``s * (q - z) == s * ((q + 128) - (z + 128))``: the real numbers are the same ones. On x86 onnxruntime's fast integer
kernels multiply unsigned activations by signed weights (VPDPBUSD), so int8 activations run about three times slower.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from targets.onnx.qdq import Array, constant, encoding, initializer, label

logger = logging.getLogger(__name__)

ALIKE = frozenset({"Add", "Mul", "Concat", "Where"})
"""Operators whose integer kernel in onnxruntime takes its operands in one type:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md"""


class ReencodeActivations(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        modified = False
        for quantize in graph:
            if quantize.op_type != "QuantizeLinear" or constant(quantize.inputs[0]) is not None:
                continue
            rule = encoding(quantize)
            readers = [use.node for use in quantize.outputs[0].uses()]
            if rule is None or rule.zero_point.dtype != np.int8:
                continue
            others = {reader.op_type for reader in readers} - {"DequantizeLinear"}
            if others:
                logger.debug("%s: left as int8, read by %s", label(quantize), ", ".join(sorted(others)))
                continue
            zero_point = unsigned(rule.zero_point)
            stored = initializer(graph, f"zero_point.uint8.{int(zero_point)}", zero_point)
            for node in (quantize, *readers):
                node.replace_input_with(2, stored)
            quantize.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
            logger.debug("%s: uint8, zero point %d", label(quantize), int(zero_point))
            modified = True
        for dequantize in list(graph):
            modified |= dequantize.op_type == "DequantizeLinear" and _reencode_constant(graph, dequantize)
        return ir.passes.PassResult(model, modified)


def _reencode_constant(graph: ir.Graph, dequantize: ir.Node) -> bool:
    """Rule 2; whether it applied."""
    source, rule = dequantize.inputs[0], encoding(dequantize)
    integers = constant(source)
    readers = {reader.op_type for reader in dequantize.outputs[0].consumers()}
    if source is None or integers is None or integers.dtype != np.int8 or rule is None or rule.scale.ndim:
        return False
    if not readers or readers - ALIKE:
        return False
    zero_point = unsigned(rule.zero_point)
    dequantize.replace_input_with(0, initializer(graph, f"{source.name}.uint8", unsigned(integers)))
    dequantize.replace_input_with(2, initializer(graph, f"zero_point.uint8.{int(zero_point)}", zero_point))
    logger.debug("%s: a constant in uint8", label(dequantize))
    return True


def unsigned(integers: Array) -> Array:
    """Integers, or a zero point, in int8 for the same real numbers in uint8.

    >>> int(unsigned(np.int8(-128))), int(unsigned(np.int8(127)))
    (0, 255)
    """
    return np.asarray(integers.astype(np.int16) + 128).astype(np.uint8)
