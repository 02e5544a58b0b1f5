"""Which operators are likely to leave the Neural Engine, by published rules.

Core ML decides where an operator runs when the model loads, by rules that Apple does not publish and that change with
the chip and the system (https://github.com/apple/coremltools/issues/1780). What is known comes from Apple's answers,
from ``MLComputePlan`` dumps and from measurements; every rule below names its source. Where sources disagree, the
measured one counts: dilated convolutions are no rule, because an early report that they leave the engine
(https://github.com/hollance/neural-engine/blob/master/docs/unsupported-layers.md) was not confirmed by compiling them
(https://ane-guide.readthedocs.io/en/latest/part-1-machine/04-capability-surface.html).

The rules hold for the A14 and M2 and later.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pipeline.core import Record
from pipeline.target import Fallback, Placement
from targets.coreml.interpreter.package import Package, read_package
from targets.coreml.interpreter.program import Operation, Program, TensorType, read_program
from targets.coreml.neural_engine.work import FOLDED, computed_in_float, operands

Property = Literal[
    "operator",
    "output dtype",
    "rank",
    "width or height",
    "channels",
    "kernel",
    "window",
    "reduced axis",
    "input shape",
]


class EngineRule(Record):
    """One reason why an operator may leave the Neural Engine.

    Attributes:
        property: What is looked at.
        values: It applies where the property is one of these …
        above: … or greater than this.
        operators: The operators that it is about; empty for all.
        exempt: Operators that it is not about.
        source: Who says so.
    """

    property: Property
    values: frozenset[str] = frozenset()
    above: int | None = None
    operators: frozenset[str] = frozenset()
    exempt: frozenset[str] = frozenset()
    reason: str
    source: str

    def applies(self, operator: str, facts: dict[Property, tuple[str | int, ...]]) -> bool:
        """Whether an operator with these properties breaks the rule."""
        if operator in self.exempt or (self.operators and operator not in self.operators):
            return False
        return any(
            fact in self.values or (self.above is not None and isinstance(fact, int) and fact > self.above)
            for fact in facts[self.property]
        )


CATALOG = "https://aneforge.readthedocs.io/en/latest/op-catalog/"
CAPABILITIES_PAGE = "https://aneforge.readthedocs.io/en/latest/capabilities/"
DESIGN_RULES = "https://ane-guide.readthedocs.io/en/latest/part-5-practice/17-model-design-rules.html"

IN_FLOAT = (
    "computed in float between integers: int8 arithmetic is documented only for int8 activations with int8 weights "
    "(https://apple.github.io/coremltools/docs-guides/source/opt-quantization-api.html)"
)

ENGINE_RULES: tuple[EngineRule, ...] = (
    EngineRule(
        property="operator",
        values=frozenset({"gru", "lstm", "rnn"}),
        reason="recurrent layers do not run on the Neural Engine",
        source="https://github.com/apple/coremltools/issues/1780",
    ),
    EngineRule(
        property="operator",
        values=frozenset({"gather"}),
        reason="MLComputePlan offers only the CPU",
        source="https://huggingface.co/mickekringai/kb-whisper-coreml/blob/main/medium/TextDecoder.mlcomputeplan.json",
    ),
    EngineRule(
        property="operator",
        values=frozenset({"topk", "gather_along_axis"}),
        reason="MLComputePlan puts it on the CPU",
        source="https://github.com/roboflow/rf-detr/pull/1495",
    ),
    EngineRule(
        property="operator",
        values=frozenset({"cond", "while_loop"}),
        reason="control flow has no form on the Neural Engine",
        source=CATALOG,
    ),
    EngineRule(
        property="operator",
        values=frozenset({"scatter", "scatter_along_axis", "scatter_nd", "non_zero", "one_hot", "reverse_sequence"}),
        reason="no hardware path for data-dependent places",
        source=CATALOG,
    ),
    EngineRule(
        property="operator",
        values=frozenset(
            {
                *("acos", "acosh", "asin", "asinh", "atanh", "cosh", "sinh", "tan", "mod", "cumsum", "reduce_prod"),
                *("logical_and", "logical_or", "logical_xor", "band_part", "range_1d", "shape", "sliding_windows"),
                *("random_bernoulli", "random_categorical", "random_normal"),
                *("list_gather", "list_length", "list_read", "list_scatter", "list_write", "make_list"),
            }
        ),
        reason="no hardware path",
        source=CATALOG,
    ),
    EngineRule(
        property="operator",
        values=frozenset({"non_maximum_suppression"}),
        reason="is handed to the CPU or the GPU",
        source=CAPABILITIES_PAGE,
    ),
    EngineRule(
        property="output dtype",
        values=frozenset({"FLOAT32", "FLOAT64"}),
        exempt=frozenset({"cast", "dequantize"}),
        reason="computes in FP32; the Neural Engine computes in FP16",
        source="https://apple.github.io/coremltools/docs-guides/source/typed-execution.html",
    ),
    EngineRule(
        property="output dtype",
        values=frozenset({"INT32", "INT64", "UINT32", "UINT64"}),
        reason="32-bit integers have no path",
        source=CAPABILITIES_PAGE,
    ),
    EngineRule(
        property="rank",
        above=5,
        reason="tensors have at most 5 dimensions",
        source="https://aneforge.readthedocs.io/en/latest/api/graph/",
    ),
    EngineRule(
        property="width or height",
        above=16384,
        reason="width and height are at most 16384",
        source=DESIGN_RULES,
    ),
    EngineRule(property="channels", above=65536, reason="channels are at most 65536", source=DESIGN_RULES),
    EngineRule(property="kernel", above=13, reason="kernels are at most 13 wide", source=DESIGN_RULES),
    EngineRule(property="window", above=31, reason="pooling windows are at most 31 wide", source=CATALOG),
    EngineRule(
        property="reduced axis", above=2048, reason="argmin and argmax reduce at most 2048 values", source=DESIGN_RULES
    ),
    EngineRule(
        property="input shape",
        values=frozenset({"range"}),
        reason="with a range of input shapes, only the default one runs on the Neural Engine",
        source="https://developer.apple.com/forums/thread/724930",
    ),
)


def placement(program: Program | Path) -> Placement:
    """Where a program's operators are likely to run; the first rule that applies names the reason.

    Operators that the Neural Engine computes in FP16 between integers count as accelerated, and are listed as well.

    Args:
        program: A program, or the package that holds one. Only a package says whether open sizes are a range or a
            list of alternatives; those of a bare program are taken as alternatives.

    Raises:
        PackageError: The package cannot be read.
    """
    ranged = False
    if isinstance(program, Path):
        package = read_package(program)
        program, ranged = read_program(package), takes_range(package)
    types = {**program.inputs, **{name: form for op in program.body.walk() for name, form in op.outputs if form}}
    kernels = {name: op for op in program.body.walk() for name, _ in op.outputs}
    floats = {id(operation) for operation in computed_in_float(program)}
    total, leaving, in_float = 0, Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for operation in program.body.walk():
        if operation.type == "const" or operation.type.startswith(FOLDED):
            continue
        total += 1
        facts = properties(operation, types, kernels, ranged=ranged)
        broken = next((rule for rule in ENGINE_RULES if rule.applies(operation.type, facts)), None)
        if broken:
            leaving[operation.type, f"{broken.reason} ({broken.source})"] += 1
        elif id(operation) in floats:
            in_float[operation.type, IN_FLOAT] += 1
    return Placement(
        operators=total,
        accelerated=total - leaving.total(),
        fallback=tuple(
            Fallback(op=op, count=count, reason=why)
            for (op, why), count in (*leaving.most_common(), *in_float.most_common())
        ),
        source="published rules for the Neural Engine, A14 and M2 or later; a device decides when the model loads",
    )


def takes_range(package: Package) -> bool:
    """Whether an input takes any size within bounds, rather than one of a list."""
    inputs = package.specification.description.input
    return any(
        (
            value.type.WhichOneof("Type") == "multiArrayType"
            and value.type.multiArrayType.WhichOneof("ShapeFlexibility") == "shapeRange"
        )
        or (
            value.type.WhichOneof("Type") == "imageType"
            and value.type.imageType.WhichOneof("SizeFlexibility") == "imageSizeRange"
        )
        for value in inputs
    )


def properties(
    operation: Operation, types: dict[str, TensorType], makers: dict[str, Operation], *, ranged: bool = False
) -> dict[Property, tuple[str | int, ...]]:
    """What the rules look at. Sizes that the file leaves open are left out."""
    read = [types[name] for name in operands(operation) if name in types]
    written = [form for _, form in operation.outputs if form]
    shapes = [form.shape for form in (*read, *written) if form.shape is not None]
    sizes = [size for shape in shapes for size in shape[2:] if size is not None]
    return {
        "operator": (operation.type,),
        "output dtype": tuple(form.dtype for form in written),
        "rank": tuple(len(shape) for shape in shapes),
        "width or height": tuple(sizes),
        "channels": tuple(shape[1] for shape in shapes if len(shape) > 1 and shape[1] is not None),
        "kernel": _kernel(operation, types),
        "window": _numbers(operation, "kernel_sizes", makers) if operation.type.endswith("_pool") else (),
        "reduced axis": _reduced(operation, read, makers),
        "input shape": ("range",) if ranged else (),
    }


def _kernel(operation: Operation, types: dict[str, TensorType]) -> tuple[int, ...]:
    name = operation.variables.get("weight")
    form = types.get(name) if operation.type in ("conv", "conv_transpose") and isinstance(name, str) else None
    return tuple(size for size in (form.shape or ())[2:] if size is not None) if form else ()


def _numbers(operation: Operation, key: str, makers: dict[str, Operation]) -> tuple[int, ...]:
    """An argument's whole numbers, from the operator itself or from the constant that it names."""
    value: Any = operation.constants.get(key)
    name = operation.variables.get(key)
    if value is None and isinstance(name, str) and name in makers:
        value = makers[name].constants.get("val")
    return () if value is None else tuple(int(number) for number in value.flatten().tolist())


def _reduced(operation: Operation, read: list[TensorType], makers: dict[str, Operation]) -> tuple[int, ...]:
    if operation.type not in ("reduce_argmax", "reduce_argmin"):
        return ()
    axes = _numbers(operation, "axis", makers) or (-1,)
    shape = read[0].shape or () if read else ()
    return tuple(size for axis in axes if -len(shape) <= axis < len(shape) and (size := shape[axis]) is not None)
