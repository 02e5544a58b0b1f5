"""Explicit padding becomes a setting of the convolution that reads it: Core ML pads each side by its own number.

An edit of the converter's own program, because torch's convolutions pad both sides alike.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import numpy as np

from targets.coreml.sdk import coremltools

logger = logging.getLogger(__name__)

NAME = "edgewright::pads_to_convolutions"
BEFORE = "common::fuse_pad_conv"
"""The converter's pass before which it runs: integers are in place, and floats are still all FP32."""


@cache
def register() -> str:
    """Give the pass to the converter, once; returns its name."""
    coremltools()
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.helper import block_context_manager
    from coremltools.converters.mil.mil.passes.pass_registry import register_pass

    namespace, name = NAME.split("::")

    class PadsToConvolutions(AbstractGraphPass):  # type: ignore[misc]  # the converter has no types
        def apply(self, program: Any) -> None:
            for function in program.functions.values():
                self._block(function)

        @block_context_manager  # type: ignore[untyped-decorator]
        def _block(self, block: Any) -> None:
            merged = sum(_merge(block, operation) for operation in list(block.operations))
            logger.debug("%d pads merged into convolutions", merged)

    PadsToConvolutions.__name__ = name
    register_pass(namespace=namespace)(PadsToConvolutions)
    return NAME


def _merge(block: Any, convolution: Any) -> bool:
    """Let a convolution pad for itself where its input is zeros around something; whether it does now."""
    from coremltools.converters.mil.mil import Builder

    if convolution.op_type != "conv" or convolution.pad_type.val not in ("valid", "custom"):
        return False
    pad = _pad_before(convolution.x)
    if pad is None:
        return False
    spatial = convolution.x.rank - 2
    widths = np.asarray(pad.pad.val)
    leading, sides = widths[: -2 * spatial], widths[-2 * spatial :]
    if leading.any() or (sides < 0).any():
        return False
    own = convolution.pad.val if convolution.pad_type.val == "custom" else np.zeros(2 * spatial, np.int32)
    given = {name: value for name, value in convolution.inputs.items() if value is not None}
    settings = {**given, "x": pad.x, "pad_type": "custom", "pad": (own + sides).astype(np.int32)}
    padded = Builder.conv(**settings, name=convolution.name, before_op=convolution)
    block.replace_uses_of_var_after_op(anchor_op=convolution, old_var=convolution.outputs[0], new_var=padded)
    unused = [convolution]
    while unused:
        operation = unused.pop()
        if operation is not None and not any(value.child_ops or value in block.outputs for value in operation.outputs):
            unused += [value.op for value in operation.inputs.values() if hasattr(value, "op") and not _is_held(value)]
            block.remove_ops([operation])
    return True


def _is_held(value: Any) -> bool:
    return value.op is None or value.op.op_type == "const"


def _pad_before(value: Any) -> Any:
    """The zero pad that a value comes from: directly, or through integers that hold its input exactly."""
    operation = value.op
    if operation is not None and operation.op_type == "dequantize":
        quantize = operation.input.op
        if quantize is None or quantize.op_type != "quantize" or quantize.input.op is None:
            return None
        source = quantize.input.op
        inner = source.x.op if source.op_type == "pad" else None
        if inner is None or inner.op_type != "dequantize" or not _same_grid(inner, operation, quantize):
            return None
        operation = source
    if operation is None or operation.op_type != "pad" or operation.pad.val is None:
        return None
    return operation if operation.mode.val == "constant" and operation.constant_val.val == 0 else None


def _same_grid(*operations: Any) -> bool:
    first, *others = (_grid(operation) for operation in operations)
    return all(other == first for other in others)


def _grid(operation: Any) -> tuple[Any, ...]:
    zero_point = None if operation.zero_point is None else operation.zero_point.val.tobytes()
    axis = None if operation.axis is None else operation.axis.val
    return operation.scale.val.tobytes(), zero_point, axis
