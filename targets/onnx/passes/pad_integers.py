"""Pad integers, not floats.

Rule: ``QuantizeLinear(Pad(x, c))`` becomes ``Pad(QuantizeLinear(x), q)``, where q is what the quantizer makes of c.

A pad only copies values and writes one number, so it commutes with quantization. onnxruntime has a kernel for padded
integers, but does not move pads onto them: it would convert to float before and back behind.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from targets.onnx.qdq import Array, constant, encoding, initializer, label

logger = logging.getLogger(__name__)


class PadIntegers(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for pad in reversed(list(model.graph)):  # the last of several in a row first
            if pad.op_type != "Pad":
                continue
            readers = pad.outputs[0].consumers()
            rules = [encoding(reader) for reader in readers if reader.op_type == "QuantizeLinear"]
            number = constant(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] is not None else np.float32(0)
            if len(rules) != 1 or len(readers) != 1 or pad.outputs[0].is_graph_output():
                logger.debug("%s: left, its result does not go to one QuantizeLinear alone", label(pad))
                continue
            if rules[0] is None or rules[0].scale.ndim or number is None:
                logger.debug("%s: left, what it writes or its encoding is not one constant", label(pad))
                continue
            written = np.array(rules[0].integer(float(number)), rules[0].zero_point.dtype)
            _pad_behind(model.graph, pad, readers[0], written)
            logger.debug("%s: pads integers with %d", label(pad), int(written))
            modified = True
        return ir.passes.PassResult(model, modified)


def _pad_behind(graph: ir.Graph, pad: ir.Node, quantize: ir.Node, written: Array) -> None:
    """Exchange a Pad and the QuantizeLinear that reads it."""
    source, result = pad.inputs[0], quantize.outputs[0]
    assert source is not None  # a Pad has an input
    integers = ir.node("QuantizeLinear", [source, *quantize.inputs[1:]])
    filled = initializer(graph, f"pad.{written.dtype}.{int(written)}", written)
    padded = ir.node("Pad", [integers.outputs[0], pad.inputs[1], filled, *pad.inputs[3:]], pad.attributes)
    integers.outputs[0].type, integers.outputs[0].shape = result.type, source.shape
    padded.outputs[0].type, padded.outputs[0].shape = result.type, result.shape
    graph_nodes, values = [integers, padded], [padded.outputs[0]]
    ir.convenience.replace_nodes_and_values(graph, quantize, [quantize], graph_nodes, [result], values)
    graph.remove(pad, safe=True)
