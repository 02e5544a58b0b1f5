"""Write average pools whose last window ends beyond the image with padding instead.

Rule: ``AveragePool(ceil_mode = 1)`` between integers becomes one that pads the end by what the last window lacks, and
does not count padding. Padding of its own that it counts becomes a ``Pad`` before it, with quantization around. Where
the image's size is not known, the pool stays in float: its input's scale becomes a product behind it.

It is the same mean. onnxruntime's integer kernel divides by the whole window's size, as if it were inside the image.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from targets.onnx.qdq import dequantized_from, encoding, initializer, label

logger = logging.getLogger(__name__)


class BoundWindows(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for pool in list(model.graph):
            if pool.op_type != "AveragePool" or pool.attributes.get_int("ceil_mode", 0) == 0:
                continue
            dequantize = dequantized_from(pool.inputs[0])
            rule = encoding(dequantize)
            if dequantize is None or rule is None or rule.scale.ndim:
                logger.debug("%s: left, its input is not dequantized per tensor", label(pool))
                continue
            spatial = len(pool.attributes.get_ints("kernel_shape", []))
            own = list(pool.attributes.get_ints("pads", [0] * 2 * spatial))
            lacking = _lacking(pool, own)
            if lacking is None:
                _keep_in_float(model.graph, pool, dequantize)
                logger.debug("%s: kept in float, its image has no fixed size", label(pool))
            else:
                if any(own) and pool.attributes.get_int("count_include_pad", 0) == 1:
                    _pad_before(model.graph, pool, dequantize, own)
                    own = [0] * 2 * spatial
                ends = [width + more for width, more in zip(own[spatial:], lacking, strict=True)]
                pool.attributes["pads"] = ir.AttrInt64s("pads", [*own[:spatial], *ends])
                pool.attributes["ceil_mode"] = ir.AttrInt64("ceil_mode", 0)
                pool.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 0)
                logger.debug("%s: pads its end by %s", label(pool), lacking)
            modified = True
        return ir.passes.PassResult(model, modified)


def missing_pixels(size: int, kernel: int, stride: int, padding: int, windows: int) -> int:
    """How far the last of some windows ends beyond a padded image.

    >>> missing_pixels(9, kernel=2, stride=2, padding=0, windows=5)
    1
    """
    return max(0, (windows - 1) * stride + kernel - size - padding)


def _lacking(pool: ir.Node, pads: Sequence[int]) -> list[int] | None:
    """By how much the last window exceeds the padded image along each axis; None where a size is not known."""
    source, result = pool.inputs[0], pool.outputs[0]
    kernel = pool.attributes.get_ints("kernel_shape", [])
    strides = pool.attributes.get_ints("strides", [1] * len(kernel))
    dilations = pool.attributes.get_ints("dilations", [1] * len(kernel))
    if source is None or source.shape is None or result.shape is None:
        return None
    sizes, windows = list(source.shape)[2:], list(result.shape)[2:]
    found = []
    for axis, (size, count) in enumerate(zip(sizes, windows, strict=True)):
        if not isinstance(size, int) or not isinstance(count, int):
            return None
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        padding = pads[axis] + pads[axis + len(kernel)]
        found.append(missing_pixels(size, reach, strides[axis], padding, count))
    return found


def _pad_before(graph: ir.Graph, pool: ir.Node, dequantize: ir.Node, pads: Sequence[int]) -> None:
    """Put a Pad with zeros before a pool, and the quantization of the pool's input behind the Pad."""
    source, spatial = dequantize.outputs[0], len(pads) // 2
    assert source.shape is not None  # the pool's windows were counted
    widths = np.array([0, 0, *pads[:spatial], 0, 0, *pads[spatial:]], np.int64)
    name = "_".join(map(str, widths))
    pad = ir.node("Pad", [source, initializer(graph, f"pads.{name}", widths)])
    quantize = ir.node("QuantizeLinear", [pad.outputs[0], *dequantize.inputs[1:]])
    padded = ir.node("DequantizeLinear", [quantize.outputs[0], *dequantize.inputs[1:]])
    around = [0, 0, *(before + after for before, after in zip(pads[:spatial], pads[spatial:], strict=True))]
    sizes = [size + more if more else size for size, more in zip(source.shape, around, strict=True)]
    for node, like in ((pad, source), (quantize, dequantize.inputs[0]), (padded, source)):
        node.outputs[0].type, node.outputs[0].shape = like.type, ir.Shape(sizes)  # type: ignore[union-attr]
    graph.insert_before(pool, [pad, quantize, padded])
    pool.replace_input_with(0, padded.outputs[0])


def _keep_in_float(graph: ir.Graph, pool: ir.Node, dequantize: ir.Node) -> None:
    """Pool whole steps, and multiply by the scale afterwards: the runtime does not take that for an integer pool."""
    result = pool.outputs[0]
    one = initializer(graph, "scale.one", np.array(1, np.float32))
    steps = ir.node("DequantizeLinear", [dequantize.inputs[0], one, dequantize.inputs[2]])
    pooled = ir.node("AveragePool", [steps.outputs[0]], pool.attributes, name=pool.name)
    scaled = ir.node("Mul", [pooled.outputs[0], dequantize.inputs[1]], name=f"{pool.name}_scale")
    steps.outputs[0].type, steps.outputs[0].shape = dequantize.outputs[0].type, dequantize.outputs[0].shape
    for node in (pooled, scaled):
        node.outputs[0].type, node.outputs[0].shape = result.type, result.shape
    ir.convenience.replace_nodes_and_values(graph, pool, [pool], [steps, pooled, scaled], [result], [scaled.outputs[0]])
