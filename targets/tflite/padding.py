"""Padding in a converted model: a PAD that adds what padding ``SAME`` adds is merged into the convolution behind it.

``SAME`` gives ``ceil(size / stride)`` outputs: an axis gets what its last window lacks, the larger half of it behind.
PyTorch writes that as ``F.pad`` before a convolution without padding, and the converter as a PAD before a ``VALID``
one. Both add zeros, as integers the zero point, so the values are the same.
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/kernels/padding.h
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from targets.tflite import flatbuffer

logger = logging.getLogger(__name__)

CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")


def merge_pads(model: Any) -> int:
    """Merge the PADs of images ``(N, H, W, C)`` in a ``ModelT``, in place; how many convolutions pad for themselves."""
    graph = model.subgraphs[0]
    merged = 0
    for pad in [operator for operator in graph.operators if flatbuffer.operator_name(model, operator) == "PAD"]:
        result = int(pad.outputs[0])
        readers = [operator for operator in graph.operators if result in operator.inputs]
        amounts = flatbuffer.int32_values(model, int(pad.inputs[1]))
        takers = [reader for reader in readers if _pads_alike(model, pad, reader, amounts)]
        for reader in takers:
            reader.inputs = [int(pad.inputs[0]), *reader.inputs[1:]]
            reader.builtinOptions.padding = schema.Padding.SAME
        merged += len(takers)
        if readers and len(takers) == len(readers) and result not in graph.outputs:
            graph.operators.remove(pad)
        logger.debug(
            "PAD %s: %d of %d readers pad alike", graph.tensors[result].name.decode(), len(takers), len(readers)
        )
    return merged


def _pads_alike(model: Any, pad: Any, reader: Any, amounts: Any) -> bool:
    """Whether a reader is a convolution without padding whose ``SAME`` adds these amounts ``(4 * 2) int32``."""
    if flatbuffer.operator_name(model, reader) not in CONVOLUTIONS or reader.inputs[0] != pad.outputs[0]:
        return False
    options, tensors = reader.builtinOptions, model.subgraphs[0].tensors
    if options.padding != schema.Padding.VALID or len(amounts) != 8:
        return False
    _, height, width, _ = tensors[pad.inputs[0]].shape
    _, rows, columns, _ = tensors[reader.inputs[1]].shape
    down = same_padding(height, rows, options.strideH, options.dilationHFactor)
    across = same_padding(width, columns, options.strideW, options.dilationWFactor)
    return bool(np.array_equal(amounts, [0, 0, *down, *across, 0, 0]))


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """What padding ``SAME`` adds before and behind an axis.

    >>> same_padding(16, kernel=3, stride=2, dilation=1), same_padding(15, kernel=3, stride=2, dilation=1)
    ((0, 1), (1, 1))
    """
    lacking = max(0, (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
    return lacking // 2, lacking - lacking // 2
