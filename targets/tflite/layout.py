"""Layout in a converted model: images as NHWC from the input on, without needless TRANSPOSEs.

Both functions change a ``ModelT`` in place (see `flatbuffer`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from targets.tflite import flatbuffer

logger = logging.getLogger(__name__)

TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def pad_in_place(model: Any) -> None:
    """Let a PAD between a TRANSPOSE and its inverse pad the axes that they permute, and drop both.

    The converter moves every operator of a convolutional network to NHWC except this one.
    """
    graph = model.subgraphs[0]
    for pad in [operator for operator in graph.operators if flatbuffer.operator_name(model, operator) == "PAD"]:
        before = next((operator for operator in graph.operators if pad.inputs[0] in operator.outputs), None)
        after = [operator for operator in graph.operators if pad.outputs[0] in operator.inputs]
        permutation = None if before is None else _permutation(model, before)
        if before is None or permutation is None or len(after) != 1 or pad.outputs[0] in graph.outputs:
            logger.debug("PAD %s: left, no TRANSPOSE before it or several readers", _name(graph, pad))
            continue
        if _permutation(model, after[0]) != tuple(np.argsort(permutation)):
            logger.debug("PAD %s: left, no inverse TRANSPOSE behind it", _name(graph, pad))
            continue
        amounts = flatbuffer.int32_values(model, pad.inputs[1]).reshape(-1, 2)[np.argsort(permutation)]
        pad.inputs = [int(before.inputs[0]), flatbuffer.add_constant(model, amounts)]
        pad.outputs = [int(after[0].outputs[0])]
        graph.operators.remove(after[0])
        logger.debug("PAD %s: pads without the TRANSPOSE on its two sides", _name(graph, pad))
        if not any(before.outputs[0] in operator.inputs for operator in graph.operators):
            graph.operators.remove(before)


def take_channels_last(model: Any) -> None:
    """Let every input ``(N, C, H, W)`` be ``(N, H, W, C)``.

    Convolutions take this layout, so a TRANSPOSE to it at the start of the graph is removed; any other reader gets the
    old layout through a TRANSPOSE of its own.
    """
    graph = model.subgraphs[0]
    for index in graph.inputs:
        tensor = graph.tensors[index]
        if len(tensor.shape) != 4:
            continue
        readers = [operator for operator in graph.operators if index in operator.inputs]
        undone = [
            operator
            for operator in readers
            if _permutation(model, operator) == TO_LAST and operator.outputs[0] not in graph.outputs
        ]
        first = [int(size) for size in tensor.shape]
        tensor.shape = [first[axis] for axis in TO_LAST]
        for operator in undone:
            graph.operators.remove(operator)
            _read_instead(graph.operators, int(operator.outputs[0]), index)
        others = [operator for operator in readers if operator not in undone]
        logger.debug("input %d: NHWC, %d TRANSPOSE removed, %d readers get NCHW", index, len(undone), len(others))
        if others:
            restored = flatbuffer.add_tensor_like(graph, index, shape=first)
            _read_instead(others, index, restored)
            permutation = flatbuffer.add_constant(model, np.array(TO_FIRST))
            graph.operators.insert(0, flatbuffer.new_operator(model, "TRANSPOSE", [index, permutation], restored))


def _permutation(model: Any, operator: Any) -> tuple[int, ...] | None:
    """Of a TRANSPOSE by a constant; None for any other operator."""
    if flatbuffer.operator_name(model, operator) != "TRANSPOSE":
        return None
    return tuple(map(int, flatbuffer.int32_values(model, operator.inputs[1]))) or None


def _name(graph: Any, operator: Any) -> str:
    """The name of an operator's result."""
    return str(graph.tensors[operator.outputs[0]].name.decode())


def _read_instead(operators: Sequence[Any], old: int, new: int) -> None:
    for operator in operators:
        operator.inputs = [new if index == old else int(index) for index in operator.inputs]
