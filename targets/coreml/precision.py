"""What FP16 cannot hold is computed in FP32: larger than 65504, or in steps finer than FP16's smallest normal number.

Two things tell what that is. A grid states the range of its tensor, and the saved program, run in FP32 on a few
samples, shows all other values. An operator that makes or reads such a tensor keeps FP32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pipeline.core import Model
from pipeline.models.capture import example_inputs
from pipeline.target import Lowered
from targets.coreml.interpreter.package import read_package
from targets.coreml.interpreter.program import Operation, read_program
from targets.coreml.session import InterpreterSession

LARGEST = float(np.finfo(np.float16).max)
SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)
FINEST_WEIGHTS = 2.0**-18
"""Scale of weights from which FP16 rounds it by less than half a step in 127; a tensor's largest scale counts."""
STEPS = 256
MARGIN = 2
"""How much larger a value may be in use than on the samples."""
SAMPLES = 4


def beyond_half(lowered: Lowered, model: Model) -> frozenset[str]:
    """The layers and inputs of a saved package whose values are FP16, and too large for it on some samples."""
    found: set[str] = set()

    def watch(operation: Operation, results: dict[str, Any]) -> None:
        for name, form in operation.outputs:
            if form is not None and form.dtype == "FLOAT16" and _is_large(results[name]):
                source = operation.variables.get("x")
                found.add(source if operation.type == "cast" and isinstance(source, str) else operation.name)

    session = InterpreterSession(lowered, precision="float32", watch=watch)
    samples = tuple(value.numpy() for value in _samples(model))
    size = lowered.batch_size or 1
    for start in range(0, len(samples[0]), size):
        session.run(tuple(np.resize(value[start : start + size], (size, *value.shape[1:])) for value in samples))
    return frozenset(found)


def in_single(lowered: Lowered) -> int:
    """How many operators of a saved package compute in FP32."""
    operations = read_program(read_package(lowered.path)).body.walk()
    return sum(
        not operation.type.startswith("const")
        and operation.type not in ("cast", "identity")
        and any(form is not None and form.dtype == "FLOAT32" for _, form in operation.outputs)
        for operation in operations
    )


def _is_large(value: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    finite = value[value.isfinite()]
    return finite.numel() > 0 and float(finite.abs().max()) * MARGIN > LARGEST


def _samples(model: Model) -> tuple[Tensor, ...]:
    """Real samples where the model has some; else normal values that span each input's grid, where it has one."""
    given = example_inputs(model.examples or model.inputs, SAMPLES)
    if model.examples:
        return given
    if not isinstance(model.module, fx.GraphModule):
        return given
    grids = {
        node.args[0].name: node.args[1:]
        for node in model.module.graph.nodes
        if node.target is torch.ops.quantized_decomposed.quantize_per_tensor.default
        and node.args[0].op == "placeholder"
    }
    placeholders = [node.name for node in model.module.graph.nodes if node.op == "placeholder"]
    return tuple(
        _spread(value, *grids[name]) if name in grids else value
        for name, value in zip(placeholders, given, strict=True)
    )


def _spread(value: Tensor, scale: float, zero_point: int, low: int, high: int, _: torch.dtype) -> Tensor:
    """Standard normal values so that three deviations reach both ends of a grid."""
    middle, half = (high + low) / 2 - zero_point, (high - low) / 2
    return ((value / 3).clamp(-1, 1) * half + middle) * scale


def in_half(kept: frozenset[str]) -> Callable[[Any], bool]:
    """Which of the converter's operators compute in FP16: all but those that make or read what FP16 does not hold.

    Args:
        kept: From `beyond_half`.
    """

    def selector(operation: Any) -> bool:
        return not any(_is_beyond(value, kept) for value in (*_operands(operation), *operation.outputs))

    return selector


def _operands(operation: Any) -> list[Any]:
    values = operation.inputs.values()
    return [each for value in values for each in (value if isinstance(value, list | tuple) else [value]) if each]


def _is_beyond(value: Any, kept: frozenset[str]) -> bool:
    """Whether FP16 does not hold a tensor of the converter's program."""
    made = value.op
    if made is None:
        return value.name in kept or _read_on_a_grid(value)
    if made.op_type == "const":
        held = value.val
        return isinstance(held, np.ndarray | np.floating | float) and _is_huge(np.asarray(held))
    if made.op_type == "constexpr_blockwise_shift_scale":
        return not FINEST_WEIGHTS <= float(np.max(made.scale.val)) <= LARGEST / STEPS
    if made.op_type == "dequantize" and _is_unusual(made):
        return True
    return made.name in kept or _read_on_a_grid(value)


def _is_huge(held: np.ndarray[Any, Any]) -> bool:
    finite = held[np.isfinite(held)]
    return held.dtype.kind == "f" and finite.size > 0 and float(np.abs(finite).max()) > LARGEST


def _read_on_a_grid(value: Any) -> bool:
    return any(
        reader.op_type == "quantize" and reader.input is value and _is_unusual(reader) for reader in value.child_ops
    )


def _is_unusual(operation: Any) -> bool:
    """Whether a quantize or dequantize has steps or ends that FP16 does not hold."""
    scale = operation.scale.val
    return scale is not None and not bool(
        np.all((np.asarray(scale) >= SMALLEST_NORMAL) & (np.asarray(scale) * STEPS * MARGIN <= LARGEST))
    )
