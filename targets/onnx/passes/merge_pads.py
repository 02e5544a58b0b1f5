"""Let convolutions and pools pad for themselves.

Rule: in ``f(DequantizeLinear(QuantizeLinear(Pad(x, c))))``, f pads by as much itself and reads x quantized alike, where
the ``Pad`` adds c along height and width only, and f would add the same:
1. ``Conv``, where c is 0;
2. ``MaxPool``, where c is the smallest integer of the encoding: it is never selected instead of a value;
3. ``AveragePool`` without padding of its own, where c is 0: it then counts what it pads.

Padding commutes with quantization, so the integers are the same. onnxruntime pads in float, with a conversion on each
side, and PyTorch's convolutions cannot hold padding that differs between two sides.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from targets.onnx.qdq import Encoding, constant, encoding, label

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Padding:
    """What a Pad with constant parameters writes: the number, and how much of it before and after each axis."""

    value: float
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def is_spatial(self) -> bool:
        """Whether it only adds, and only from axis 2 on."""
        return not any(self.before[:2] + self.after[:2]) and min(self.before + self.after) >= 0


class MergePads(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for pad in list(model.graph):
            padding = padding_of(pad)
            if padding is None or not padding.is_spatial:
                continue
            for quantize in [reader for reader in pad.outputs[0].consumers() if _is_per_tensor(reader)]:
                for dequantize in quantize.outputs[0].consumers():
                    modified |= _merge(model.graph, pad, padding, quantize, dequantize)
        return ir.passes.PassResult(model, modified)


def padding_of(node: ir.Node) -> Padding | None:
    """What a node writes if it is a Pad with a number and constant widths."""
    if node.op_type != "Pad" or node.attributes.get_string("mode", "constant") != "constant":
        return None
    source, widths, *others = node.inputs
    number, axes = (*others, None, None)[:2]
    known, value = constant(widths), 0.0 if number is None else constant(number)
    if source is None or source.shape is None or known is None or value is None:
        return None
    rank = len(source.shape)
    chosen = list(range(rank)) if axes is None else constant(axes)
    if chosen is None:
        return None
    before, after = [0] * rank, [0] * rank
    for position, axis in enumerate(chosen):
        before[int(axis)], after[int(axis)] = int(known[position]), int(known[position + len(chosen)])
    return Padding(float(np.asarray(value).item()), tuple(before), tuple(after))


def _is_per_tensor(node: ir.Node) -> bool:
    rule = encoding(node) if node.op_type == "QuantizeLinear" else None
    return rule is not None and rule.scale.ndim == 0


def _merge(graph: ir.Graph, pad: ir.Node, padding: Padding, quantize: ir.Node, dequantize: ir.Node) -> bool:
    """Merge a pad into all that read one of its dequantized copies and can take it; whether any could."""
    rule = encoding(quantize)
    source, result = pad.inputs[0], dequantize.outputs[0]
    if rule is None or source is None or not rule.same_as(encoding(dequantize)):
        return False
    takers = [reader for reader in result.consumers() if _takes(reader, result, padding, rule)]
    if not takers:
        logger.debug("%s: left, no convolution or pool reads it that would pad alike", label(pad))
        return False
    integers = ir.node("QuantizeLinear", [source, *quantize.inputs[1:]])
    unpadded = ir.node("DequantizeLinear", [integers.outputs[0], *dequantize.inputs[1:]])
    for node, like in ((integers, quantize), (unpadded, dequantize)):
        node.outputs[0].type, node.outputs[0].shape = like.outputs[0].type, source.shape
    graph.insert_before(pad, [integers, unpadded])
    for reader in takers:
        pads = _pads(reader, len(padding.before) - 2)
        added = [*padding.before[2:], *padding.after[2:]]
        reader.attributes["pads"] = ir.AttrInt64s("pads", [own + more for own, more in zip(pads, added, strict=True)])
        if reader.op_type == "AveragePool":
            reader.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
        reader.replace_input_with(0, unpadded.outputs[0])
        logger.debug("%s: %s pads for itself", label(pad), label(reader))
    return True


def _takes(reader: ir.Node, value: ir.Value, padding: Padding, rule: Encoding) -> bool:
    """Whether a node that reads a padded value can pad it, and would add the same number."""
    if reader.inputs[0] is not value or reader.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return False
    written = rule.integer(padding.value)
    if reader.op_type == "Conv":
        return written == int(rule.zero_point)
    own = _pads(reader, len(padding.before) - 2)
    kernel = reader.attributes.get_ints("kernel_shape", [])
    added = [*padding.before[2:], *padding.after[2:]]
    fits = all(width + more < size for width, more, size in zip(own, added, [*kernel, *kernel], strict=False))
    if not fits or set(reader.attributes.get_ints("dilations", [1])) != {1}:
        return False
    if reader.op_type == "MaxPool":
        return written == rule.lowest and len(reader.outputs) == 1
    plain = not any(own) and reader.attributes.get_int("ceil_mode", 0) == 0
    return reader.op_type == "AveragePool" and plain and written == int(rule.zero_point)


def _pads(node: ir.Node, spatial: int) -> list[int]:
    return list(node.attributes.get_ints("pads", [0] * 2 * spatial))
