"""Write a linear layer on more than two axes as Gemm.

Rule: ``QuantizeLinear(Add(MatMul(DequantizeLinear(x), w), b))`` with x of three or more axes, w a dequantized constant
(``Transpose``d or not) and b a constant row becomes ``Reshape`` of the integers to two axes, ``Gemm`` with the same
quantization around it, and ``Reshape`` back.

It is the same sum. onnxruntime's integer Gemm takes the bias into its accumulator and quantizes on the way out; its
integer MatMul does neither, which leaves the bias and the quantization to two more passes over floats.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from targets.onnx.qdq import constant, dequantized_from, encoding, initializer, label

logger = logging.getLogger(__name__)


class UseGemm(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for matmul in list(model.graph):
            if matmul.op_type == "MatMul" and _rewrite(model.graph, matmul):
                modified = True
        return ir.passes.PassResult(model, modified)


def _rewrite(graph: ir.Graph, matmul: ir.Node) -> bool:
    dequantize = dequantized_from(matmul.inputs[0])
    weight, transposed = _weight(matmul.inputs[1])
    add = _only_reader(matmul, "Add")
    quantize = None if add is None else _only_reader(add, "QuantizeLinear")
    if dequantize is None or weight is None or add is None or quantize is None:
        logger.debug("%s: left, no constant weight, or no single sum and QuantizeLinear behind it", label(matmul))
        return False
    row = next((value for value in add.inputs if value is not matmul.outputs[0]), None)
    bias, integers, result = constant(row), dequantize.inputs[0], quantize.outputs[0]
    inner, outer = _static_tail(integers), _static_tail(add.outputs[0])
    if bias is None or bias.ndim != 1 or integers is None or not inner or not outer or len(outer) < 2:
        logger.debug("%s: left, no constant bias, or two axes or dynamic ones", label(matmul))
        return False

    flatten = ir.node("Reshape", [integers, initializer(graph, f"shape.rows_{inner[-1]}", _shape([inner[-1]]))])
    activation = ir.node("DequantizeLinear", [flatten.outputs[0], *dequantize.inputs[1:]])
    gemm = ir.node(
        "Gemm", [activation.outputs[0], weight, row], {"transB": int(transposed)}, name=f"{matmul.name}_gemm"
    )
    requantize = ir.node("QuantizeLinear", [gemm.outputs[0], *quantize.inputs[1:]])
    name = "x".join(map(str, outer))
    unflatten = ir.node("Reshape", [requantize.outputs[0], initializer(graph, f"shape.{name}", _shape(outer))])
    unflatten.outputs[0].shape, unflatten.outputs[0].type = result.shape, result.type
    new = [flatten, activation, gemm, requantize, unflatten]
    logger.debug("%s: written as Gemm", label(matmul))
    ir.convenience.replace_nodes_and_values(graph, quantize, [quantize], new, [result], [unflatten.outputs[0]])
    return True


def _weight(value: ir.Value | None) -> tuple[ir.Value | None, bool]:
    """The dequantized constant behind an operand, and whether it is transposed."""
    producer = value.producer() if value is not None else None
    transposed = producer is not None and producer.op_type == "Transpose"
    if transposed:
        assert producer is not None
        value = producer.inputs[0]
    dequantize = dequantized_from(value)
    stored = None if dequantize is None else constant(dequantize.inputs[0])
    rule = encoding(dequantize)
    if stored is None or stored.ndim != 2 or rule is None:
        return None, False
    columns = 0 if transposed else 1
    return (value, transposed) if rule.scale.ndim == 0 or rule.axis == columns else (None, False)


def _only_reader(node: ir.Node, op: str) -> ir.Node | None:
    """The one node that reads a node's result, if there is one, of this type."""
    readers = node.outputs[0].consumers()
    only = len(readers) == 1 and readers[0].op_type == op and not node.outputs[0].is_graph_output()
    return readers[0] if only else None


def _static_tail(value: ir.Value | None) -> list[int]:
    """All sizes but the first; empty unless there are at least two and all are static."""
    if value is None or value.shape is None or len(value.shape) < 3:
        return []
    tail = [size for size in list(value.shape)[1:] if isinstance(size, int)]
    return tail if len(tail) == len(value.shape) - 1 else []


def _shape(tail: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([-1, *tail], dtype=np.int64)
