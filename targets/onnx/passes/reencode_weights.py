"""Re-encode int8 weights as uint8, for x86 CPUs without VNNI.

Rule: a constant int8 that is dequantized for a ``Conv``, ``Gemm`` or ``MatMul`` and its zero points grow by 128.

``s * (w - z) == s * ((w + 128) - (z + 128))``: the real numbers are the same ones. Without VNNI, onnxruntime multiplies
uint8 by int8 with VPMADDUBSW, whose sums of two products saturate at 16 bits; uint8 by uint8 takes another, exact, path
(https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html#when-to-use-reduce-range-and-per-channel-quantization).
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from targets.onnx.passes.reencode_activations import unsigned
from targets.onnx.qdq import constant, encoding, initializer, label

logger = logging.getLogger(__name__)

MULTIPLIES = ("Conv", "Gemm", "MatMul")


class ReencodeWeights(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for dequantize in list(model.graph):
            stored, rule = constant(dequantize.inputs[0]) if dequantize.inputs else None, encoding(dequantize)
            readers = [node.op_type for node in dequantize.outputs[0].consumers()]
            if stored is None or rule is None or stored.dtype != np.int8:
                continue
            if not set(readers) <= set(MULTIPLIES):
                logger.debug("%s: left as int8, read by %s", label(dequantize), ", ".join(sorted(set(readers))))
                continue
            for index, array in ((0, stored), (2, rule.zero_point)):
                source = dequantize.inputs[index]
                assert source is not None  # both are the constants that were just read
                dequantize.replace_input_with(index, initializer(model.graph, f"{source.name}.uint8", unsigned(array)))
            logger.debug("%s: stored as uint8", label(dequantize))
            modified = True
        return ir.passes.PassResult(model, modified)
