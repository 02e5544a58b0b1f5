"""A MIL program as plain Python values: blocks of operations with typed, named values.

The message format: https://apple.github.io/coremltools/mlmodel/Format/MIL.html
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from targets.coreml.interpreter.package import Array, Package, PackageError, unpack_bits

Value = Any
"""What a MIL value is held as: a tensor, text, or a tuple or dict of values.

Floats of every width are held as float32, because that is what torch computes fast in; rounding to FP16 is a separate,
explicit step. Integers narrower than a byte are held as bytes, and 16-bit and unsigned 32-bit ones as int32 and int64.
"""

MAX_ELEMENTS = 1 << 29
"""More elements than this in one tensor are refused: 2 GiB in float32."""


@dataclass(frozen=True, slots=True)
class DataType:
    """How tensors of one MIL data type look in the file, and how they are held.

    Attributes:
        bits: Of an integer that is packed with others into bytes.
    """

    stored: str
    held: torch.dtype
    bits: int | None = None


DATA_TYPES = {
    "BOOL": DataType("?", torch.bool),
    "FLOAT16": DataType("<f2", torch.float32),
    "FLOAT32": DataType("<f4", torch.float32),
    "FLOAT64": DataType("<f8", torch.float32),
    "INT4": DataType("i1", torch.int8, bits=4),
    "INT8": DataType("i1", torch.int8),
    "INT16": DataType("<i2", torch.int32),
    "INT32": DataType("<i4", torch.int32),
    "INT64": DataType("<i8", torch.int64),
    "UINT1": DataType("u1", torch.uint8, bits=1),
    "UINT2": DataType("u1", torch.uint8, bits=2),
    "UINT3": DataType("u1", torch.uint8, bits=3),
    "UINT4": DataType("u1", torch.uint8, bits=4),
    "UINT6": DataType("u1", torch.uint8, bits=6),
    "UINT8": DataType("u1", torch.uint8),
    "UINT16": DataType("<u2", torch.int32),
    "UINT32": DataType("<u4", torch.int64),
    "UINT64": DataType("<u8", torch.int64),
}


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor's data type, such as ``FLOAT16``, and its shape; None is a size known only at run time."""

    dtype: str
    shape: tuple[int | None, ...] | None

    @property
    def held(self) -> torch.dtype:
        """The torch dtype that its values are held in.

        Raises:
            PackageError: It is no type of numbers.
        """
        if self.dtype not in DATA_TYPES:
            raise PackageError(f"a tensor cannot be of type {self.dtype}")
        return DATA_TYPES[self.dtype].held


@dataclass(frozen=True, slots=True)
class Operation:
    """One MIL operation.

    Attributes:
        type: Its operator, such as ``conv``.
        name: The layer's name; the first output's where the file names none.
        constants: Inputs whose values are in the file.
        variables: Inputs that other operations produce: a name, or one name per part of a tuple. A part of a tuple
            may be a constant; it then has a name of its own in the block's constants.
        outputs: Names and, for tensors, types.
    """

    type: str
    name: str
    constants: dict[str, Value]
    variables: dict[str, str | tuple[str, ...]]
    outputs: tuple[tuple[str, TensorType | None], ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A list of operations with its own names. ``literals`` are constants inside tuples of inputs."""

    inputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]
    literals: dict[str, Value]

    def walk(self) -> Iterator[Operation]:
        """Every operation of the block and of the blocks within it."""
        for operation in self.operations:
            yield operation
            for block in operation.blocks:
                yield from block.walk()


@dataclass(frozen=True, slots=True)
class Program:
    """The ``main`` function of a package.

    Attributes:
        opset: The MIL version it is written in, such as ``CoreML8`` for iOS 18.
        inputs: Names and types, in the order of the function.
    """

    opset: str
    inputs: dict[str, TensorType]
    body: Block

    def count_operators(self) -> Counter[str]:
        """How often each operator occurs, constants left out."""
        return Counter(operation.type for operation in self.body.walk() if operation.type != "const")


def read_program(package: Package, function: str = "main") -> Program:
    """Decode the program of a package, with all weights that it refers to.

    Raises:
        PackageError: The program refers to something that is not there, or states a size that is not true.
    """
    try:
        return _Reader(package).read(function)
    except (ValueError, KeyError, IndexError, TypeError) as error:  # protobuf's own, for messages that make no sense
        raise PackageError(
            f"the program is damaged: {error}", where=str(package.folder), fix="save or copy the package again"
        ) from error


class _Reader:
    """Decodes messages; knows the package that weights are read from."""

    def __init__(self, package: Package) -> None:
        from coremltools.proto import MIL_pb2

        self._package = package
        self._where = str(package.folder)
        self._dtype_name: Callable[[int], str] = MIL_pb2.DataType.Name
        self._weight_files: dict[str, Any] = {}

    def read(self, name: str) -> Program:
        functions = self._package.specification.mlProgram.functions
        if name not in functions:
            raise PackageError(f"has no function {name!r}; it has {', '.join(functions) or 'none'}", where=self._where)
        function = functions[name]
        if function.opset not in function.block_specializations:
            raise PackageError(f"has no block for its own opset {function.opset!r}", where=self._where)
        inputs = {}
        for value in function.inputs:
            form = self._type(value.type)
            if form is None:
                raise PackageError(f"input {value.name!r} is a {value.type.WhichOneof('type')}", where=self._where)
            inputs[value.name] = form
        return Program(function.opset, inputs, self._block(function.block_specializations[function.opset]))

    def _block(self, message: Any) -> Block:
        literals: dict[str, Value] = {}
        return Block(
            inputs=tuple(value.name for value in message.inputs),
            operations=tuple(self._operation(operation, literals) for operation in message.operations),
            outputs=tuple(message.outputs),
            literals=literals,
        )

    def _operation(self, message: Any, literals: dict[str, Value]) -> Operation:
        outputs = tuple((value.name, self._type(value.type)) for value in message.outputs)
        attributes = {key: self._value(value) for key, value in message.attributes.items()}
        name = attributes.pop("name", None) or (outputs[0][0] if outputs else message.type)
        variables: dict[str, str | tuple[str, ...]] = {}
        constants = attributes
        for key, argument in message.inputs.items():
            bindings = list(argument.arguments)
            kinds = [binding.WhichOneof("binding") for binding in bindings]
            if kinds == ["name"]:
                variables[key] = bindings[0].name
            elif kinds == ["value"]:
                constants[key] = self._value(bindings[0].value)
            else:
                variables[key] = tuple(self._part(binding, literals) for binding in bindings)
        blocks = tuple(self._block(block) for block in message.blocks)
        return Operation(message.type, str(name), constants, variables, outputs, blocks)

    def _part(self, binding: Any, literals: dict[str, Value]) -> str:
        """The name of one part of a tuple; a constant gets one that no file can contain."""
        if binding.WhichOneof("binding") == "name":
            return str(binding.name)
        name = f"\0literal {len(literals)}"
        literals[name] = self._value(binding.value)
        return name

    def _type(self, message: Any) -> TensorType | None:
        """The type of a tensor; None for lists, tuples, dictionaries and states."""
        if message.WhichOneof("type") != "tensorType":
            return None
        tensor = message.tensorType
        shape = tuple(
            int(dimension.constant.size) if dimension.WhichOneof("dimension") == "constant" else None
            for dimension in tensor.dimensions
        )
        known = math.prod(size for size in shape if size is not None)
        if known > MAX_ELEMENTS:
            raise PackageError(f"states a tensor of shape {shape}: too large", where=self._where)
        variadic = any(
            dimension.WhichOneof("dimension") == "unknown" and dimension.unknown.variadic
            for dimension in tensor.dimensions
        )
        return TensorType(self._dtype_name(tensor.dataType), None if variadic else shape)

    def _value(self, message: Any) -> Value:
        kind = message.WhichOneof("value")
        if kind == "blobFileValue":
            return self._blob(message)
        immediate = message.immediateValue
        part = immediate.WhichOneof("value")
        if part == "tensor":
            return self._immediate(message.type, immediate.tensor)
        if part in ("list", "tuple"):
            return tuple(self._value(value) for value in getattr(immediate, part).values)
        if part == "dictionary":
            pairs = immediate.dictionary.values
            return {self._hashable(self._value(pair.key)): self._value(pair.value) for pair in pairs}
        raise PackageError(f"holds a constant of unknown form {kind} {part}", where=self._where)

    def _hashable(self, key: Value) -> str | int:
        return key if isinstance(key, str) else int(key)

    def _blob(self, message: Any) -> Tensor:
        form, count = self._constant_type(message.type)
        reference = message.blobFileValue
        if reference.fileName not in self._weight_files:
            self._weight_files[reference.fileName] = self._package.weights(reference.fileName)
        array = self._weight_files[reference.fileName].read(reference.offset, count)
        if array.dtype != np.dtype(DATA_TYPES[form.dtype].stored):
            raise PackageError(f"a {form.dtype} tensor is stored as {array.dtype}", where=self._where)
        return hold(array.reshape(form.shape), form)

    def _immediate(self, type_: Any, message: Any) -> Value:
        kind = message.WhichOneof("value")
        if kind is None and type_.tensorType.rank == 1:
            form, count = self._constant_type(type_)
            if form.dtype == "STRING":
                return ()
            stored = np.empty(0, DATA_TYPES[form.dtype].stored)
        elif kind == "strings":
            texts = tuple(message.strings.values)
            return texts[0] if type_.tensorType.rank == 0 and len(texts) == 1 else texts
        else:
            form, count = self._constant_type(type_)
            if kind == "bytes":
                stored = _of_bytes(np.frombuffer(message.bytes.values, np.uint8), DATA_TYPES[form.dtype], count)
            else:
                stored = np.asarray(getattr(message, kind).values if kind else [], dtype=DATA_TYPES[form.dtype].stored)
        if stored.size != count:
            raise PackageError(
                f"states a {form.dtype} tensor of shape {form.shape} but holds {stored.size} values", where=self._where
            )
        return hold(stored.reshape(form.shape), form)

    def _constant_type(self, message: Any) -> tuple[TensorType, int]:
        form = self._type(message)
        if form is None or form.shape is None or None in form.shape:
            raise PackageError("holds a constant whose shape is not fixed", where=self._where)
        if form.dtype not in DATA_TYPES and form.dtype != "STRING":
            raise PackageError(f"holds a constant of unknown type {form.dtype}", where=self._where)
        return form, math.prod(size for size in form.shape if size is not None)


def _of_bytes(data: Array, form: DataType, count: int) -> Array:
    """The values in the bytes of a constant; of another number where the bytes are too few or too many."""
    if form.bits is not None and len(data) == math.ceil(count * form.bits / 8):
        return unpack_bits(data, form.bits, count, signed=form.stored == "i1")
    return data.view(form.stored) if len(data) % np.dtype(form.stored).itemsize == 0 else data


def hold(array: Array, form: TensorType) -> Tensor:
    """A stored array as the tensor that it is held as."""
    held = DATA_TYPES[form.dtype].held
    plain = array.astype({torch.float32: "f4", torch.int32: "i4", torch.int64: "i8"}.get(held, array.dtype), copy=True)
    return torch.from_numpy(np.ascontiguousarray(plain)).reshape(array.shape)
