"""Reading and writing quantization in an ONNX graph: constants, QuantizeLinear and DequantizeLinear.

Formulas: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Encoding:
    """``real = scale * (integer - zero_point)``.

    Attributes:
        scale: Scalar, or one per channel: ``(C,) float32``.
        zero_point: In the integers' dtype and the shape of ``scale``.
        axis: The channel axis; meaningless for a scalar scale.
    """

    scale: Array
    zero_point: Array
    axis: int

    @property
    def lowest(self) -> int:
        """The smallest integer of the dtype."""
        return int(np.iinfo(self.zero_point.dtype).min)

    @property
    def highest(self) -> int:
        """The largest integer of the dtype."""
        return int(np.iinfo(self.zero_point.dtype).max)

    def same_as(self, other: Encoding | None) -> bool:
        """Whether both map every real number to the same integer."""
        return (
            other is not None
            and self.zero_point.dtype == other.zero_point.dtype
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
            and (self.scale.ndim == 0 or self.axis == other.axis)
        )

    def integer(self, real: float) -> int:
        """What a per-tensor encoding makes of one real number.

        >>> Encoding(np.float32(0.5), np.int8(-128), 1).integer(6.0)
        -116
        """
        unbounded = np.rint(real / float(self.scale)) + int(self.zero_point)
        return int(np.clip(unbounded, self.lowest, self.highest))


def label(node: ir.Node) -> str:
    """How a log names a node: ``Conv node_conv2d``."""
    return f"{node.op_type} {node.name or node.outputs[0].name}"


def constant(value: ir.Value | None) -> Array | None:
    """The array of an initializer or Constant node; None for anything that is computed at run time."""
    if value is None or (value.producer() is None and not value.is_initializer()):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def encoding(node: ir.Node | None) -> Encoding | None:
    """The encoding of a QuantizeLinear or DequantizeLinear whose scale and zero point are constants."""
    if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.inputs) < 3:
        return None
    scale, zero_point = constant(node.inputs[1]), constant(node.inputs[2])
    if scale is None or zero_point is None:
        return None
    axis = node.attributes.get_int("axis", 1)
    return Encoding(scale, zero_point, axis)


def dequantized_from(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that produces a value, if one does."""
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A constant of the graph under this name; the one that is there already if it is equal, else a numbered one."""
    candidate, number = name, 0
    while (known := graph.initializers.get(candidate)) is not None:
        stored = constant(known)
        if stored is not None and stored.dtype == array.dtype and np.array_equal(stored, array):
            return known
        number += 1
        candidate = f"{name}_{number}"
    tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=candidate)
    value = ir.Value(name=candidate, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
