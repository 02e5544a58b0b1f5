"""The work of each operator of a MIL program: multiply-accumulates, weights, activations."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from targets.coreml.interpreter.program import Operation, Program, TensorType

OperatorKind = Literal["conv", "depthwise", "linear", "matmul", "elementwise", "activation", "reduction", "layout"]

_OPERATORS: dict[OperatorKind, str] = {
    "conv": "conv conv_transpose",
    "linear": "linear",
    "matmul": "matmul einsum scaled_dot_product_attention",
    "activation": """clip elu erf gelu hard_swish leaky_relu linear_activation prelu relu relu6 scaled_tanh sigmoid
        sigmoid_hard silu softplus softsign tanh thresholded_relu""",
    "reduction": """avg_pool batch_norm instance_norm l2_norm l2_pool layer_norm local_response_norm max_pool
        reduce_argmax reduce_argmin reduce_l1_norm reduce_l2_norm reduce_log_sum reduce_log_sum_exp reduce_max
        reduce_mean reduce_min reduce_prod reduce_sum reduce_sum_square softmax topk""",
    "layout": """band_part batch_to_space concat crop crop_resize depth_to_space expand_dims flatten2d gather
        gather_along_axis gather_nd pad pixel_shuffle pixel_unshuffle reshape reshape_like resample resize
        resize_bilinear resize_nearest_neighbor reverse slice_by_index slice_by_size slice_update sliding_windows
        space_to_batch space_to_depth split squeeze stack tile transpose upsample_bilinear
        upsample_nearest_neighbor""",
}
KIND_OF: dict[str, OperatorKind] = {name: kind for kind, names in _OPERATORS.items() for name in names.split()}
"""How the roofline treats an operator; any other one is elementwise."""

FREE = frozenset({"const", "quantize", "dequantize", "classify"})
"""Operators that only name values, or only say how values between operators are stored."""

UNCOUNTED = frozenset({"cond", "gru", "lstm", "rnn", "while_loop"})
"""Operators that repeat or choose what they do, so that their work is not known from the file, or not counted here."""

FLOATS = ("FLOAT16", "FLOAT32", "FLOAT64")

FOLDED = "constexpr_"
"""The prefix of operators that Core ML evaluates when a model loads, or while weights stream in."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one operator does in one forward pass.

    Attributes:
        macs: Multiply-accumulates.
        weights: Constant elements read: weights, and the few that its arguments (strides, padding …) are.
        activations: Activation elements read and written.
        weight_bits: Bits that one weight is stored in.
        activation_bits: Bits that one activation is stored in: 8 where both operands are quantized, 16 otherwise.
    """

    kind: OperatorKind
    macs: int
    weights: int
    activations: int
    weight_bits: int = 16
    activation_bits: int = 16

    def as_precision(self, precision: StoredPrecision) -> Work:
        """The same operator of an FP16 program, stored as the precision says."""
        weight_bits, activation_bits = BITS[precision]
        return replace(self, weight_bits=weight_bits, activation_bits=activation_bits)


StoredPrecision = Literal["fp16", "W8A16", "W8A8"]
BITS: dict[StoredPrecision, tuple[int, int]] = {"fp16": (16, 16), "W8A16": (8, 16), "W8A8": (8, 8)}
"""Bits of a weight and of an activation."""


def works(program: Program, batch_size: int = 1) -> Counter[Work]:
    """The work of each operator, equal ones counted; a size that the file leaves open counts as the batch.

    A reshape may move the open size into another dimension; its value then follows from the number of elements.
    """
    shapes = _Shapes(program, batch_size)
    found: Counter[Work] = Counter()
    for operation in program.body.walk():
        if operation.type not in FREE and not operation.type.startswith(FOLDED):
            found[_work(operation, shapes)] += 1
    return found


def computed_in_float(program: Program) -> list[Operation]:
    """Operators of an integer program that compute in floats, between integers: none where it quantizes nothing.

    Left out are those that only move or convert values, and those that multiply dequantized activations by 8-bit
    weights, which the Neural Engine computes in int8.
    """
    if "quantize" not in program.count_operators():
        return []
    shapes = _Shapes(program, batch_size=1)
    return [
        operation
        for operation in program.body.walk()
        if operation.type not in FREE | {"cast", "identity"}
        and not operation.type.startswith(FOLDED)
        and KIND_OF.get(operation.type) != "layout"
        and any(form is not None and form.dtype in FLOATS for _, form in operation.outputs)
        and not _multiplies_int8(_work(operation, shapes))
    ]


def _multiplies_int8(work: Work) -> bool:
    return work.weight_bits == work.activation_bits == 8


class _Shapes:
    """Types of all values, with open sizes filled in."""

    def __init__(self, program: Program, batch_size: int) -> None:
        self.types: dict[str, TensorType] = dict(program.inputs)
        self.makers: dict[str, Operation] = {}
        self._open = dict.fromkeys(program.inputs, batch_size)
        for operation in program.body.walk():
            sizes = [self._open[name] for name in operands(operation) if name in self._open and self._is_open(name)]
            inherited = max(sizes, default=batch_size)
            for name, form in operation.outputs:
                self.makers[name] = operation
                if form is None:
                    continue
                self.types[name], self._open[name] = form, inherited
                known = math.prod(size for size in form.shape or () if size is not None)
                source = operation.variables.get("x")
                if operation.type == "reshape" and (form.shape or ()).count(None) == 1 and isinstance(source, str):
                    self._open[name] = max(1, self.elements(source) // max(1, known))

    def _is_open(self, name: str) -> bool:
        return None in (self.types[name].shape or ())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape; empty for values that are no tensors."""
        form = self.types.get(name)
        return tuple(self._open[name] if size is None else size for size in (form.shape if form else None) or ())

    def argument(self, operation: Operation, key: str) -> tuple[int, ...]:
        """The shape of an operator's argument, which may be a constant of the operator itself."""
        name = operation.variables.get(key)
        return self.shape(name) if isinstance(name, str) else tuple(operation.constants[key].shape)

    def elements(self, name: str) -> int:
        """Elements in the tensor."""
        return math.prod(self.shape(name))

    def constant(self, name: str) -> bool:
        """Whether the value is a constant of the file."""
        maker = self.makers.get(name)
        return maker is not None and (maker.type == "const" or maker.type.startswith(FOLDED))

    def stored_bits(self, name: str) -> int:
        """Bits of one element as the file stores it, through the ``constexpr`` operators before it."""
        maker = self.makers.get(name)
        if maker is not None and maker.type.startswith(FOLDED):
            data = next(
                (maker.variables[key] for key in ("data", "indices", "quantized_data") if key in maker.variables), None
            )
            if isinstance(data, str):
                return self.stored_bits(data)
            held = next(
                (maker.constants[key] for key in ("indices", "quantized_data", "data") if key in maker.constants), None
            )
            return 16 if held is None else 8 * int(held.element_size())
        form = self.types.get(name)
        digits = re.search(r"\d+$", form.dtype) if form else None
        return min(16, int(digits.group())) if digits else 16

    def flag(self, operation: Operation, key: str) -> bool:
        """An argument that is true or false, from the operator itself or from the constant that it names."""
        name = operation.variables.get(key)
        maker = self.makers.get(name) if isinstance(name, str) else None
        value = maker.constants.get("val") if maker else operation.constants.get(key)
        return value is not None and bool(value)

    def quantized(self, name: str) -> bool:
        """Whether the value comes straight from a dequantize."""
        maker = self.makers.get(name)
        return maker is not None and maker.type == "dequantize"


def operands(operation: Operation) -> tuple[str, ...]:
    """Names of the values that an operator reads, tuples flattened."""
    return tuple(
        name for value in operation.variables.values() for name in (value if isinstance(value, tuple) else (value,))
    )


def _work(operation: Operation, shapes: _Shapes) -> Work:
    names = operands(operation)
    fixed = [name for name in names if shapes.constant(name)]
    moving = [name for name in names if name not in fixed]
    outputs = [name for name, _ in operation.outputs]
    written = sum(map(shapes.elements, outputs))
    kind = KIND_OF.get(operation.type, "elementwise")
    macs = 0
    if operation.type in ("conv", "conv_transpose"):
        macs, kind = _convolution(operation, shapes, outputs[0])
    elif operation.type == "linear":
        macs = written * shapes.argument(operation, "weight")[-1]
    elif kind == "matmul":
        macs = _matmul(operation, shapes, written)
        kind = "linear" if {operation.variables.get("x"), operation.variables.get("y")} & set(fixed) else kind
    weight = max(fixed, key=shapes.elements, default=None) if kind in ("conv", "depthwise", "linear") else None
    return Work(
        kind=kind,
        macs=macs,
        weights=sum(map(shapes.elements, fixed)),
        activations=written + sum(map(shapes.elements, moving)),
        weight_bits=shapes.stored_bits(weight) if weight else 16,
        activation_bits=8 if moving and all(map(shapes.quantized, moving)) else 16,
    )


def _convolution(operation: Operation, shapes: _Shapes, output: str) -> tuple[int, OperatorKind]:
    """Outputs (inputs, where transposed) times the kernel's elements per channel of it."""
    weight = shapes.argument(operation, "weight")
    transposed = operation.type == "conv_transpose"
    places = shapes.elements(str(operation.variables["x"]) if transposed else output)
    macs = places * math.prod(weight[1:])
    several = shapes.argument(operation, "x")[1:2] != (1,)
    return macs, "depthwise" if weight[1] == 1 and several and not transposed else "conv"


def _matmul(operation: Operation, shapes: _Shapes, written: int) -> int:
    if operation.type == "scaled_dot_product_attention":
        query, key = shapes.shape(str(operation.variables["query"])), shapes.shape(str(operation.variables["key"]))
        return 2 * math.prod(query) * key[-2]
    if operation.type == "einsum":
        left, right = operands(operation)[:2]
        contracted = math.sqrt(shapes.elements(left) * shapes.elements(right) / max(1, written))
        return round(written * contracted)
    sizes = shapes.argument(operation, "x") or (1,)
    return written * sizes[-2 if shapes.flag(operation, "transpose_x") and len(sizes) > 1 else -1]
