"""Executing a MIL program on torch, operator by operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.core import EdgewrightError, TargetError
from targets.coreml.interpreter.operators import OPERATORS
from targets.coreml.interpreter.package import Array, read_package
from targets.coreml.interpreter.program import Block, Operation, Program, TensorType, Value, read_program

Precision = Literal["float32", "float16"]

Watch = Callable[[Operation, dict[str, Value]], None]

UNFIT = (RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, AssertionError)
"""What an operator raises on arguments of a wrong kind, type or shape."""

CONTROL = frozenset({"const", "cond", "while_loop", "classify"})


class Interpreter:
    """A saved ``.mlpackage``, read from its files alone and ready to run.

    Args:
        precision: ``float32`` computes every float in FP32, also where the program says FP16, so that only the
            integers' rounding remains. ``float16`` computes each operator in FP32 and rounds its result to FP16 where
            the program says FP16, as hardware with wide accumulators does.
        watch: Called with every operation that is run and its results by name.

    Raises:
        PackageError: The package cannot be read.
        TargetError: The program has operators that are not in the table; all are named.
    """

    def __init__(self, package: Path, *, precision: Precision = "float32", watch: Watch | None = None) -> None:
        self.where, self._watch = str(package), watch
        read = read_package(package)
        self.description = read.specification.description
        self.program: Program = read_program(read)
        self._rounds = precision == "float16"
        _refuse_unknown(self.program, self.where)
        self._constants: dict[str, Value] = {}
        self._last_uses: dict[int, dict[int, tuple[str, ...]]] = {}
        with torch.inference_mode():
            self._prepare(self.program.body)

    @property
    def inputs(self) -> dict[str, TensorType]:
        """Names and types of the inputs."""
        return self.program.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self.program.body.outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for inputs by name; floats come as float32, integers as int32.

        Raises:
            TargetError: An input is missing, unknown or of the wrong shape, or an operator cannot do what the program
                asks; the message names the layer.
        """
        values = self._checked(inputs)
        with torch.inference_mode():
            outputs = self._run(self.program.body, values)
        return {
            name: value.numpy() if isinstance(value, Tensor) else np.asarray(value)
            for name, value in zip(self.outputs, outputs, strict=True)
        }

    def _checked(self, inputs: Mapping[str, Array]) -> dict[str, Value]:
        unknown, missing = inputs.keys() - self.inputs.keys(), self.inputs.keys() - inputs.keys()
        if unknown or missing:
            problem = f"has no input {min(unknown)!r}" if unknown else f"needs input {min(missing)!r}"
            raise TargetError(problem, where=self.where, fix=f"its inputs: {', '.join(self.inputs)}")
        values = {}
        for name, form in self.inputs.items():
            array = np.asarray(inputs[name])
            if not _fits(array.shape, form):
                raise TargetError(
                    f"input {name!r} has shape {list(array.shape)}, but the model takes {_spelled(form)}",
                    where=self.where,
                )
            values[name] = self._settle(torch.from_numpy(np.ascontiguousarray(array)), form)
        return values

    def _prepare(self, block: Block) -> None:
        """Compute all constants once, and find out where each value is used last."""
        self._constants |= block.literals
        for operation in block.operations:
            if operation.type == "const":
                if "val" not in operation.constants or not operation.outputs:
                    raise TargetError("a constant without a value or a name", where=self._layer(operation))
                self._constants[operation.outputs[0][0]] = operation.constants["val"]
            elif operation.type.startswith("constexpr_"):
                self._constants |= self._operate(operation, self._constants)
            for inner in operation.blocks:
                self._prepare(inner)
        self._last_uses[id(block)] = _last_uses(block)

    def _run(self, block: Block, values: dict[str, Value]) -> list[Value]:
        """Run a block; ``values`` holds its inputs, and outer values where it is nested. Values are freed when done."""
        last_uses = self._last_uses[id(block)]
        for index, operation in enumerate(block.operations):
            if operation.type == "const" or operation.type.startswith("constexpr_"):
                continue
            results = self._operate(operation, values)
            if self._watch is not None:
                self._watch(operation, results)
            values |= results
            for name in last_uses.get(index, ()):
                values.pop(name, None)
        return [self._value(name, values) for name in block.outputs]

    def _value(self, name: str, values: Mapping[str, Value]) -> Value:
        if name in values:
            return values[name]
        if name in self._constants:
            return self._constants[name]
        raise TargetError(f"refers to {name!r}, which nothing computes", where=self.where)

    def _operate(self, operation: Operation, values: Mapping[str, Value]) -> dict[str, Value]:
        """Run one operation; returns its outputs by name."""
        arguments = dict(operation.constants)
        for key, names in operation.variables.items():
            if isinstance(names, tuple):
                arguments[key] = tuple(self._value(name, values) for name in names)
            else:
                arguments[key] = self._value(names, values)
        try:
            if operation.type in CONTROL:
                results = self._control(operation, arguments, values)
            else:
                results = OPERATORS[operation.type].run(**arguments)
            listed = results if isinstance(results, tuple) and not _is_list(operation) else (results,)
            return {
                name: self._settle(value, form) for (name, form), value in zip(operation.outputs, listed, strict=True)
            }
        except EdgewrightError as error:
            if error.where is not None:
                raise
            raise TargetError(error.problem, where=self._layer(operation)) from None
        except (
            RuntimeError,
            LookupError,
            ValueError,
            TypeError,
            AttributeError,
            ArithmeticError,
            AssertionError,
        ) as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise TargetError(f"cannot be computed: {first_line}", where=self._layer(operation)) from error

    def _layer(self, operation: Operation) -> str:
        return f"{self.where}: {operation.type} {operation.name!r}"

    def _control(self, operation: Operation, arguments: dict[str, Value], values: Mapping[str, Value]) -> Value:
        """Branches, loops and class labels."""
        if operation.type == "cond":
            branch = operation.blocks[0 if bool(arguments["pred"]) else 1]
            return tuple(self._run(branch, dict(values)))
        if operation.type == "while_loop":
            state = arguments["loop_vars"]
            state = state if isinstance(state, tuple) else (state,)
            condition, body = operation.blocks
            while bool(self._run(condition, dict(values) | dict(zip(condition.inputs, state, strict=True)))[0]):
                state = tuple(self._run(body, dict(values) | dict(zip(body.inputs, state, strict=True))))
            return state
        probabilities, classes = arguments["probabilities"].flatten(), arguments["classes"]
        return classes[int(probabilities.argmax())], dict(zip(classes, probabilities.tolist(), strict=True))

    def _settle(self, value: Value, form: TensorType | None) -> Value:
        """A result as the program declares it: its type, rounded to FP16 where asked, and a shape that fits."""
        if form is None or not isinstance(value, Tensor):
            return value
        if not _fits(value.shape, form):
            raise TargetError(f"gives shape {list(value.shape)}, but the program states {_spelled(form)}")
        if value.dtype != form.held:
            value = value.to(form.held)
        if self._rounds and form.dtype == "FLOAT16":
            value = value.half().float()
        return value


def _is_list(operation: Operation) -> bool:
    """Whether the one output is itself a list, which is held as a tuple."""
    return operation.type in ("make_list", "list_write", "list_scatter")


def _fits(shape: Iterable[int], form: TensorType) -> bool:
    if form.shape is None:
        return True
    sizes = tuple(shape)
    return len(sizes) == len(form.shape) and all(
        stated is None or size == stated for size, stated in zip(sizes, form.shape, strict=True)
    )


def _spelled(form: TensorType) -> str:
    """A shape as text, unknown sizes as question marks."""
    return str(["?" if size is None else size for size in form.shape or ()]).replace("'", "")


def _last_uses(block: Block) -> dict[int, tuple[str, ...]]:
    """Per operation, the block's own values that nothing after it needs."""
    own = {name for operation in block.operations for name, _ in operation.outputs} | set(block.inputs)
    last: dict[str, int] = {}
    for index, operation in enumerate(block.operations):
        for name in _uses(operation):
            last[name] = index
    freed: dict[int, list[str]] = {}
    for name, index in last.items():
        if name in own and name not in block.outputs:
            freed.setdefault(index, []).append(name)
    return {index: tuple(names) for index, names in freed.items()}


def _uses(operation: Operation) -> Iterable[str]:
    for names in operation.variables.values():
        yield from names if isinstance(names, tuple) else (names,)
    for block in operation.blocks:
        for inner in block.operations:
            yield from _uses(inner)
        yield from block.outputs


def _refuse_unknown(program: Program, where: str) -> None:
    unknown: dict[str, str] = {}
    for operation in program.body.walk():
        if operation.type not in OPERATORS and operation.type not in CONTROL:
            unknown.setdefault(operation.type, operation.name)
    if unknown:
        counts: Counter[str] = program.count_operators()
        named = ", ".join(f"{type_} ({counts[type_]} times, first as {name!r})" for type_, name in unknown.items())
        raise TargetError(f"the reference interpreter has no operator {named}", where=where)
