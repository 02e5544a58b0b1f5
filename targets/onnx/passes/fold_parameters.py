"""Store the parameters of float operators as floats.

Rule: a ``DequantizeLinear`` of constants that only normalizations read becomes its float result.

The numbers are the same; the runtime would dequantize them in every run, since it keeps all Q/DQ for its fusions.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from targets.onnx.qdq import constant, encoding, initializer, label

logger = logging.getLogger(__name__)

FLOAT_ONLY = ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization")


class FoldParameters(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for dequantize in list(model.graph):
            rule = encoding(dequantize) if dequantize.op_type == "DequantizeLinear" else None
            integers = constant(dequantize.inputs[0]) if rule is not None else None
            result = dequantize.outputs[0]
            readers = {node.op_type for node in result.consumers()}
            if rule is None or integers is None or rule.scale.ndim != 0 or not readers & set(FLOAT_ONLY):
                continue
            if readers - set(FLOAT_ONLY):
                logger.debug("%s: left, read by %s as well", label(dequantize), ", ".join(sorted(readers)))
                continue
            steps = integers.astype(np.int32) - int(rule.zero_point)
            source = dequantize.inputs[0]
            assert source is not None  # it is the constant that was just read
            floats = np.asarray(steps.astype(np.float32) * rule.scale, np.float32)
            result.replace_all_uses_with(initializer(model.graph, f"{source.name}.float", floats))
            logger.debug("%s: stored as floats", label(dequantize))
            model.graph.remove(dequantize, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified)
