"""Keep softmax on the float kernel.

Rule: in ``QuantizeLinear(Softmax(DequantizeLinear(q, s, z)))`` the scale moves into a product of its own:
``Softmax(s * DequantizeLinear(q, 1, z))``.

The numbers are the same, and the runtime no longer replaces the three by its integer softmax, which is slower and
coarser: on ViT-tiny's twelve ``(3, 197, 197)`` scores it takes 3.1 ms, the float kernel with its conversions 1.2 ms
(1 thread, x86), and its rounding departs from the program's.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from targets.onnx.qdq import dequantized_from, encoding, initializer, label

logger = logging.getLogger(__name__)


class KeepSoftmaxInFloat(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        modified = False
        for softmax in list(graph):
            dequantize = dequantized_from(softmax.inputs[0]) if softmax.op_type == "Softmax" else None
            rule = encoding(dequantize)
            if dequantize is None or rule is None or rule.scale.ndim != 0:
                if softmax.op_type == "Softmax":
                    logger.debug("%s: left, its input is not dequantized per tensor", label(softmax))
                continue
            steps = ir.node(
                "DequantizeLinear",
                [dequantize.inputs[0], initializer(graph, "scale.one", np.array(1, np.float32)), dequantize.inputs[2]],
            )
            scaled = ir.node("Mul", [steps.outputs[0], dequantize.inputs[1]], name=f"{softmax.name}_scale")
            for node in (steps, scaled):
                node.outputs[0].shape, node.outputs[0].type = dequantize.outputs[0].shape, dequantize.outputs[0].type
            graph.insert_before(softmax, [steps, scaled])
            softmax.replace_input_with(0, scaled.outputs[0])
            logger.debug("%s: kept in float", label(softmax))
            modified = True
        return ir.passes.PassResult(model, modified)


def is_kept_in_float(node: ir.Node) -> bool:
    """Whether a node is a softmax that this pass changed, or the product that it put before one."""
    product = node.inputs[0].producer() if node.op_type == "Softmax" and node.inputs[0] is not None else node
    if product is None or product.op_type != "Mul":
        return False
    rule = encoding(dequantized_from(product.inputs[0]))
    readers = [reader.op_type for reader in product.outputs[0].consumers()]
    return rule is not None and rule.scale.ndim == 0 and float(rule.scale) == 1 and readers == ["Softmax"]
