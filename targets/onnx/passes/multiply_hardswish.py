"""Write hardswish as a product of integers.

Rule: ``QuantizeLinear(HardSwish(DequantizeLinear(q, s, z)))`` becomes ``QuantizeLinear(Mul(DequantizeLinear(q, s, z),
DequantizeLinear(Clip(q, high = 2 z), f, 0)))`` where a factor f exists with which each of the 256 integers gives the
result of hardswish.

One exists where the quantizer let the grid begin at -3 with 3 a whole number of steps
(`pipeline.stages.quantize.scales.hardswish`): ``x * min(x + 3, 6) / 6`` is then a multiple of
``(q - z) * min(q, 2 z)``. The factor is the middle of the interval in which every product rounds as it should.

onnxruntime has no integer hardswish: in float it is four kernels, which take more than twice as long as these two.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from targets.onnx.qdq import Array, Encoding, dequantized_from, encoding, initializer, label

logger = logging.getLogger(__name__)


class MultiplyHardswish(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for hardswish in list(model.graph):
            dequantize = dequantized_from(hardswish.inputs[0]) if hardswish.op_type == "HardSwish" else None
            readers = hardswish.outputs[0].consumers()
            before, after = encoding(dequantize), encoding(readers[0] if len(readers) == 1 else None)
            if dequantize is None or before is None or after is None or hardswish.outputs[0].is_graph_output():
                if hardswish.op_type == "HardSwish":
                    logger.debug("%s: left, not between one DequantizeLinear and one QuantizeLinear", label(hardswish))
                continue
            factor = gate_scale(before, after)
            if factor is None:
                logger.debug("%s: left, no product gives it for all 256 integers", label(hardswish))
                continue
            logger.debug("%s: written as an integer product", label(hardswish))
            _rewrite(model.graph, hardswish, dequantize, before, factor)
            modified = True
        return ir.passes.PassResult(model, modified)


def gate_scale(before: Encoding, after: Encoding) -> np.float32 | None:
    """The scale of ``min(q, 2 z)`` with which the product is hardswish for all integers; None where there is none."""
    if before.scale.ndim or after.scale.ndim or before.zero_point.dtype != after.zero_point.dtype:
        return None
    wanted, products = hardswish_table(before, after), _products(before)
    zero_point = int(after.zero_point)
    low = np.where(wanted > after.lowest, wanted - zero_point - 0.5, -np.inf)
    high = np.where(wanted < after.highest, wanted - zero_point + 0.5, np.inf)
    up, down = products > 0, products < 0
    least = max((low[up] / products[up]).max(initial=0), (high[down] / products[down]).max(initial=0))
    most = min((high[up] / products[up]).min(initial=np.inf), (low[down] / products[down]).min(initial=np.inf))
    factor = np.float32((least + most) / 2 * float(after.scale) / float(before.scale)) if np.isfinite(most) else None
    if factor is None or not np.array_equal(_product_table(before, after, factor), wanted):
        return None
    return factor


def hardswish_table(before: Encoding, after: Encoding) -> Array:
    """The program's result for each of the 256 integers: ``(256,) int64``."""
    x = np.arange(256, dtype=np.float32) - np.float32(int(before.zero_point) - before.lowest)
    x *= before.scale
    y = x * np.clip(x + np.float32(3), 0, 6) / np.float32(6)
    return _rounded(y * (np.float32(1) / after.scale), after)


def _product_table(before: Encoding, after: Encoding, factor: np.float32) -> Array:
    """The integer product's result for each of them."""
    return _rounded(_products(before).astype(np.float32) * (before.scale * factor / after.scale), after)


def _products(before: Encoding) -> Array:
    integers, zero = np.arange(256), int(before.zero_point) - before.lowest
    return (integers - zero) * np.minimum(integers, 2 * zero)


def _rounded(steps: Array, rule: Encoding) -> Array:
    result: Array = np.clip(np.rint(steps).astype(np.int64) + int(rule.zero_point), rule.lowest, rule.highest)
    return result


def _rewrite(graph: ir.Graph, hardswish: ir.Node, dequantize: ir.Node, before: Encoding, factor: np.float32) -> None:
    integers, dtype = dequantize.inputs[0], before.zero_point.dtype
    assert integers is not None  # DequantizeLinear has an input
    result = hardswish.outputs[0]
    highest, new = 2 * int(before.zero_point) - before.lowest, []
    gate = integers
    if highest < before.highest:
        bound = initializer(graph, f"clamp.{dtype}.{highest}", np.array(highest, dtype))
        new.append(ir.node("Clip", [integers, None, bound], name=f"{hardswish.name}_gate"))
        gate = new[0].outputs[0]
    zero = initializer(graph, f"zero_point.{dtype}.{before.lowest}", np.array(before.lowest, dtype))
    scaled = ir.node(
        "DequantizeLinear", [gate, initializer(graph, f"{result.name}.gate_scale", np.array(factor)), zero]
    )
    product = ir.node("Mul", [hardswish.inputs[0], scaled.outputs[0]], name=hardswish.name)
    new += [scaled, product]
    for node, like in zip(new, [integers] * (len(new) - 2) + [result, result], strict=True):
        node.outputs[0].shape, node.outputs[0].type = like.shape, like.type
    ir.convenience.replace_nodes_and_values(graph, hardswish, [hardswish], new, [result], [product.outputs[0]])
