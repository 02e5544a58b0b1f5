"""Remove clamps that the quantized range already implies.

Rule: a ``Relu`` or ``Clip(low, high)`` read only by ``QuantizeLinear`` is removed where every reader maps ``low`` to
its smallest integer and ``high`` to its largest.

Quantization is monotonic and saturates: what the clamp would bring back to its bounds, the integers bring there as
well. A clamp between Conv and QuantizeLinear keeps onnxruntime from fusing the two into one integer kernel.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from targets.onnx.qdq import constant, encoding


class RemoveImpliedClamps(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for clamp in list(model.graph):
            bounds = clamp_bounds(clamp)
            source = clamp.inputs[0] if clamp.inputs else None
            if bounds is None or source is None or clamp.outputs[0].is_graph_output():
                continue
            readers = [use.node for use in clamp.outputs[0].uses()]
            if readers and all(_implies(reader, *bounds) for reader in readers):
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


def _implies(reader: ir.Node, low: float, high: float) -> bool:
    rule = encoding(reader) if reader.op_type == "QuantizeLinear" else None
    if rule is None or rule.scale.ndim != 0:
        return False
    return rule.integer(low) == rule.lowest and rule.integer(high) == rule.highest
