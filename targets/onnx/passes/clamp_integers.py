"""Move clamps behind the quantization, or away.

Rules, for a ``Relu`` or ``Clip(low, high)`` that is read only by ``QuantizeLinear``:
1. Where every reader maps ``low`` to its smallest integer and ``high`` to its largest, the clamp is removed.
2. Where one reader does not, and nothing else reads the clamp's input, ``QuantizeLinear`` comes first, and a ``Clip``
   to the integers of ``low`` and ``high`` follows it.

Quantization is monotonic and saturates: values that the clamp would limit to its bounds, the integers limit as well. A
clamp between Conv and QuantizeLinear keeps onnxruntime from fusing the two into one integer kernel. Rule 2 is for
tensors that share their encoding with wider ones, such as the parts of a concatenation.
"""

from __future__ import annotations

import logging
import math

import numpy as np
import onnx_ir as ir

from targets.onnx.qdq import Encoding, constant, encoding, initializer, label

logger = logging.getLogger(__name__)


class ClampIntegers(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for clamp in list(model.graph):
            bounds = clamp_bounds(clamp)
            source = clamp.inputs[0] if clamp.inputs else None
            if bounds is None or source is None or clamp.outputs[0].is_graph_output():
                continue
            readers = [use.node for use in clamp.outputs[0].uses()]
            rules = [_per_tensor(reader) for reader in readers]
            if not readers:
                continue
            if None in rules:
                logger.debug("%s: left, not all of its readers quantize it per tensor", label(clamp))
                continue
            if not all(rule is not None and implies(rule, *bounds) for rule in rules):
                if len(readers) > 1 or len(source.consumers()) > 1:
                    logger.debug("%s: left, narrower than the integers, and other nodes read its input", label(clamp))
                    continue
                assert rules[0] is not None
                _clip_after(model.graph, readers[0], rules[0], *bounds)
                logger.debug("%s: moved behind %s", label(clamp), label(readers[0]))
            else:
                logger.debug("%s: removed, the quantization behind it implies it", label(clamp))
            clamp.outputs[0].replace_all_uses_with(source)
            model.graph.remove(clamp, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified)


def clamp_bounds(node: ir.Node) -> tuple[float, float] | None:
    """What a Relu or a Clip with constant bounds limits its values to."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    if node.op_type != "Clip":
        return None
    bounds = [-math.inf, math.inf]
    for index, value in enumerate(node.inputs[1:]):
        if value is not None:
            bound = constant(value)
            if bound is None:
                return None
            bounds[index] = float(bound)
    return bounds[0], bounds[1]


def implies(rule: Encoding, low: float, high: float) -> bool:
    """Whether an encoding saturates at or within the bounds of a clamp."""
    return rule.integer(low) == rule.lowest and rule.integer(high) == rule.highest


def _per_tensor(reader: ir.Node) -> Encoding | None:
    rule = encoding(reader) if reader.op_type == "QuantizeLinear" else None
    return rule if rule is not None and rule.scale.ndim == 0 else None


def _clip_after(graph: ir.Graph, quantize: ir.Node, rule: Encoding, low: float, high: float) -> None:
    """Put a Clip of the integers behind a QuantizeLinear."""
    result, dtype = quantize.outputs[0], rule.zero_point.dtype
    readers = list(result.uses())
    bounds = [
        initializer(graph, f"clamp.{dtype}.{rule.integer(bound)}", np.array(rule.integer(bound), dtype))
        for bound in (low, high)
    ]
    clip = ir.node("Clip", [result, *bounds])
    clip.outputs[0].shape, clip.outputs[0].type = result.shape, result.type
    graph.insert_after(quantize, clip)
    for node, index in readers:
        node.replace_input_with(index, clip.outputs[0])
