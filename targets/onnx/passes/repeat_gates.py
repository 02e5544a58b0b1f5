"""Repeat a channel's gate for every column of the image.

Rule: in ``Mul(x, DequantizeLinear(g))`` with x of shape ``(N, C, H, W)`` and g of ``(N, C, 1, 1)``, the integers g
become ``Tile(g, (1, 1, 1, W))``, where the image has at least `PIXELS` pixels.

onnxruntime keeps channels last on the CPU, and calls its product once for every stretch in which both operands advance
together: the C channels of a pixel before, the ``W C`` values of a row after. A call takes some 18 ns, so
squeeze-excite's product over ``(1, 32, 112, 112)`` takes 100 us in place of 335, over ``(1, 96, 56, 56)`` 77 in place
of 131 (1 thread, x86). The numbers are the same.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from targets.onnx.qdq import dequantized_from, initializer, label

logger = logging.getLogger(__name__)

PIXELS = 512
"""With fewer, the Tile takes longer than the calls that it saves."""


class RepeatGates(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for product in list(model.graph):
            if product.op_type == "Mul" and _rewrite(model.graph, product):
                modified = True
        return ir.passes.PassResult(model, modified)


def _rewrite(graph: ir.Graph, product: ir.Node) -> bool:
    sizes = {
        operand: size for operand in product.inputs if operand is not None and (size := _size(operand)) is not None
    }
    gates = [operand for operand, size in sizes.items() if size == (1, 1)]
    images = [size for size in sizes.values() if size[0] * size[1] >= PIXELS]
    dequantize = dequantized_from(gates[0]) if len(gates) == len(images) == 1 else None
    if dequantize is None:
        if gates:
            logger.debug("%s: left, the image is small or the gate is not dequantized", label(product))
        return False
    (gate,), ((_, width),), integers = gates, images, dequantize.inputs[0]
    assert integers is not None  # DequantizeLinear has an input
    assert gate.shape is not None  # it has a size
    tile = ir.node("Tile", [integers, initializer(graph, f"repeats.{width}", np.array([1, 1, 1, width], np.int64))])
    repeated = ir.node("DequantizeLinear", [tile.outputs[0], *dequantize.inputs[1:]])
    for node, like in ((tile, integers), (repeated, gate)):
        node.outputs[0].type, node.outputs[0].shape = like.type, ir.Shape([*list(gate.shape)[:3], width])
    graph.insert_before(product, [tile, repeated])
    product.replace_input_with(list(product.inputs).index(gate), repeated.outputs[0])
    logger.debug("%s: its gate repeated %d times", label(product), width)
    return True


def _size(value: ir.Value) -> tuple[int, int] | None:
    """Height and width of a value ``(N, C, H, W)`` where they are known."""
    if value.shape is None or len(value.shape) != 4:
        return None
    height, width = list(value.shape)[2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None
