"""Write a mean over height and width as GlobalAveragePool.

Rule: ``ReduceMean(x, axes = all axes from 2 on, keepdims = 1)`` becomes ``GlobalAveragePool(x)``; without keepdims, a
``Reshape`` to ``(N, C)`` follows.

It is the same sum over the same elements. onnxruntime has an integer kernel for the pool, and none for the mean.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from targets.onnx.qdq import constant, initializer, label

logger = logging.getLogger(__name__)


class UseGlobalPooling(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        modified = False
        for mean in list(graph):
            source = mean.inputs[0] if mean.op_type == "ReduceMean" else None
            if source is None or source.shape is None or len(source.shape) < 3:
                continue
            axes = constant(mean.inputs[1]) if len(mean.inputs) > 1 else None
            rank = len(source.shape)
            if axes is None or sorted(int(axis) % rank for axis in axes) != list(range(2, rank)):
                logger.debug("%s: left, it is not over all axes from 2 on", label(mean))
                continue
            result = mean.outputs[0]
            pool = ir.node("GlobalAveragePool", [source])
            nodes, last = [pool], pool.outputs[0]
            last.type, last.shape = result.type, ir.Shape([*list(source.shape)[:2], *[1] * (rank - 2)])
            if not mean.attributes.get_int("keepdims", 1):
                shape = initializer(graph, "shape.batch_channels", np.array([0, -1], dtype=np.int64))
                nodes.append(ir.node("Reshape", [last, shape]))
                last = nodes[-1].outputs[0]
                last.type, last.shape = result.type, result.shape
            ir.convenience.replace_nodes_and_values(graph, mean, [mean], nodes, [result], [last])
            logger.debug("%s: written as GlobalAveragePool", label(mean))
            modified = True
        return ir.passes.PassResult(model, modified)
