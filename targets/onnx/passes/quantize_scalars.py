"""Give constant numbers in sums and products an encoding of their own.

Rule: in ``QuantizeLinear(Add(DequantizeLinear(q), c))`` and the same with ``Mul``, a constant number c becomes the
``DequantizeLinear`` of one integer: 1 with the scale c and the zero point 0, or 0 with the scale -c and the zero point
1 where c is negative.

The number is the same to the last bit. onnxruntime fuses a sum or product into one integer kernel only where both
operands are dequantized; otherwise three float kernels run.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from targets.onnx.qdq import constant, dequantized_from, encoding, initializer, label

logger = logging.getLogger(__name__)


class QuantizeScalars(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.op_type not in ("Add", "Mul"):
                continue
            if not _is_quantized(node):
                logger.debug("%s: left, its result does not go to one QuantizeLinear alone", label(node))
                continue
            for index in (0, 1):
                rule = encoding(dequantized_from(node.inputs[1 - index]))
                number = constant(node.inputs[index])
                if rule is None or rule.scale.ndim or number is None or number.ndim or not number:
                    continue
                dtype, negative = rule.zero_point.dtype, bool(number < 0)
                parameters = [
                    initializer(model.graph, f"scalar.{dtype}.{int(not negative)}", np.array(not negative, dtype)),
                    initializer(model.graph, f"scalar.scale.{abs(float(number)):.6g}", np.abs(number)),
                    initializer(model.graph, f"zero_point.{dtype}.{int(negative)}", np.array(negative, dtype)),
                ]
                stored = ir.node("DequantizeLinear", parameters)
                model.graph.insert_before(node, stored)
                node.replace_input_with(index, stored.outputs[0])
                logger.debug("%s: the number %g stored as one integer", label(node), float(number))
                modified = True
        return ir.passes.PassResult(model, modified)


def _is_quantized(node: ir.Node) -> bool:
    """Whether a result goes to one QuantizeLinear and nowhere else."""
    readers = [reader.op_type for reader in node.outputs[0].consumers()]
    return readers == ["QuantizeLinear"] and not node.outputs[0].is_graph_output()
