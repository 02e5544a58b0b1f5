"""Remove quantization that changes nothing.

Rules:
1. ``QuantizeLinear(DequantizeLinear(q))`` with the same encoding is ``q``.
2. ``QuantizeLinear(Reshape-like(DequantizeLinear(q)))`` keeps its place: onnxruntime moves such operators onto the
   integers itself, and needs the pair around them to do so.

Both are exact: an integer survives the way to its real number and back.
"""

from __future__ import annotations

import onnx_ir as ir

from targets.onnx.qdq import dequantized_from, encoding


class RemoveRequantization(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for quantize in list(model.graph):
            if quantize.op_type != "QuantizeLinear":
                continue
            dequantize, rule = dequantized_from(quantize.inputs[0]), encoding(quantize)
            if dequantize is None or rule is None or not rule.same_as(encoding(dequantize)):
                continue
            integers = dequantize.inputs[0]
            assert integers is not None
            quantize.outputs[0].replace_all_uses_with(integers)
            model.graph.remove(quantize, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified)
