"""Keep pads apart from pools.

Rule: a ``Pad`` that anything else than a ``Conv`` reads names its axes.

onnxruntime merges a ``Pad`` with zeros into the ``MaxPool`` behind it, which then pads with minus infinity: where all
values are negative, the maximum is another one. It merges no ``Pad`` that names its axes.
https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/optimizer/pad_fusion.cc
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from targets.onnx.qdq import initializer, label

logger = logging.getLogger(__name__)


class KeepPads(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for pad in list(model.graph):
            shape = pad.inputs[0].shape if pad.op_type == "Pad" and pad.inputs[0] is not None else None
            if shape is None or len(pad.inputs) > 3:
                continue
            if all(reader.op_type == "Conv" for reader in pad.outputs[0].consumers()):
                logger.debug("%s: left, convolutions alone read it", label(pad))
                continue
            axes = initializer(model.graph, f"axes.{len(shape)}", np.arange(len(shape), dtype=np.int64))
            inputs = [*pad.inputs, *[None] * (3 - len(pad.inputs)), axes]
            named = ir.node("Pad", inputs, pad.attributes, name=pad.name)
            named.outputs[0].type, named.outputs[0].shape = pad.outputs[0].type, pad.outputs[0].shape
            ir.convenience.replace_nodes_and_values(
                model.graph, pad, [pad], [named], [pad.outputs[0]], [named.outputs[0]]
            )
            logger.debug("%s: names its axes", label(named))
            modified = True
        return ir.passes.PassResult(model, modified)
