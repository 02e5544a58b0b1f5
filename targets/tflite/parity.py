"""Where a ``.tflite`` file's integers first differ from the quantized program's."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from targets.tflite import flatbuffer
from targets.tflite.graph import quantize
from targets.tflite.session import Port, interpreter

if TYPE_CHECKING:
    from pipeline.target import Array


@dataclass(frozen=True, slots=True)
class LayerParity:
    """One integer tensor of the file against the same tensor of the program.

    Attributes:
        operator: The operator that makes it, such as ``CONV_2D``.
        tensor: Its name in the file.
        max_steps: Largest difference, in steps of the tensor's scale.
        differing_ratio: Share of its values that differ at all.
    """

    operator: str
    tensor: str
    max_steps: int
    differing_ratio: float


def layers(
    program: torch.nn.Module, path: Path, inputs: tuple[Tensor, ...], *, reference_kernels: bool
) -> tuple[LayerParity, ...]:
    """Compare every integer tensor that the file and the program have in common, in the file's order.

    Args:
        program: A Q/DQ graph.
        inputs: One sample, ``(1, …) float32`` each.
    """
    model = flatbuffer.read_model(path.read_bytes())
    made = _makers(model)
    found = []
    for index, (expected, got) in integers(program, path, inputs, reference_kernels=reference_kernels).items():
        steps = np.abs(got.astype(np.int32) - expected)
        name = model.subgraphs[0].tensors[index].name.decode()
        found.append(LayerParity(made[index], name, int(steps.max()), float((steps > 0).mean())))
    return tuple(found)


def integers(
    program: torch.nn.Module, path: Path, inputs: tuple[Tensor, ...], *, reference_kernels: bool
) -> dict[int, tuple[Array, Array]]:
    """The program's and the file's integers of every tensor that they have in common, by its index in the file.

    Each operator reads the program's own integers, so a difference is that operator's alone. Tensors are matched by
    their quantization parameters and size, which calibration makes all but unique.
    """
    known = quantized_values(program, inputs)
    model = flatbuffer.read_model(path.read_bytes())
    graph = model.subgraphs[0]
    made = _makers(model)
    model.signatureDefs, graph.outputs = [], list(made)
    feeds = [tensor.numpy() for tensor in inputs]
    whole = dict(zip(made, _run(model, feeds, reference_kernels), strict=True))
    expected = {
        index: _nearest(numbers, known[key])
        for index, numbers in whole.items()
        if (key := _key(graph.tensors[index])) in known
    }
    _cut(graph, expected)
    apart = dict(zip(made, _run(model, [*feeds, *expected.values()], reference_kernels), strict=True))
    return {index: (numbers, apart[index]) for index, numbers in expected.items()}


def _makers(model: Any) -> dict[int, str]:
    """The operator that makes each integer tensor, by the tensor's index."""
    graph = model.subgraphs[0]
    return {
        int(index): flatbuffer.operator_name(model, operator)
        for operator in graph.operators
        for index in operator.outputs
        if flatbuffer.dtype_name(graph.tensors[index]) == "INT8"
    }


def first_divergence(found: Sequence[LayerParity], *, steps: int = 1) -> LayerParity | None:
    """The first tensor that differs by more than ``steps``; None where none does."""
    return next((layer for layer in found if layer.max_steps > steps), None)


Key = tuple[float, int, int]
"""Scale, zero point and number of elements."""


def quantized_values(program: torch.nn.Module, inputs: tuple[Tensor, ...]) -> dict[Key, list[Array]]:
    """The integers behind every quantizer of a program, by their parameters and size."""
    captured = torch.export.export(program, inputs).module()
    assert isinstance(captured, fx.GraphModule)
    values: dict[Key, list[Array]] = {}

    class Recorder(fx.Interpreter):
        def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            result = super().call_function(target, args, kwargs)
            if target is quantize:
                key = (float(np.float32(args[1])), int(args[2]), result.numel())
                values.setdefault(key, []).append(result.numpy().astype(np.int32))
            return result

    with torch.inference_mode():
        Recorder(captured).run(*inputs)
    return values


def _key(tensor: Any) -> Key:
    return (
        float(tensor.quantization.scale[0]),
        int(tensor.quantization.zeroPoint[0]),
        int(np.prod(tensor.shape, dtype=np.int64)),
    )


def _run(model: Any, feeds: Sequence[Array], reference_kernels: bool) -> list[Array]:
    """Outputs of a model whose first inputs take real values, and whose others take integers."""
    loaded = interpreter(flatbuffer.serialize(model), reference_kernels=reference_kernels)
    for details, values in zip(loaded.get_input_details(), feeds, strict=True):
        numbers = values if values.dtype.kind == "i" else Port(details).encode(values)
        loaded.set_tensor(details["index"], numbers.astype(details["dtype"]))
    loaded.invoke()
    return [loaded.get_tensor(details["index"]) for details in loaded.get_output_details()]


def _nearest(numbers: Array, candidates: Sequence[Array]) -> Array:
    """The candidate closest to ``numbers``, in their shape. The file holds images as NHWC, the program as NCHW."""
    layouts = [
        layout for value in candidates for layout in (value, np.moveaxis(value, 1, -1) if value.ndim > 2 else value)
    ]
    shaped = [layout.reshape(numbers.shape) for layout in layouts]
    return min(shaped, key=lambda value: int(np.abs(numbers.astype(np.int32) - value).sum()))


def _cut(graph: Any, tensors: Iterable[int]) -> None:
    """Make every reader of these tensors read a new input of the graph instead."""
    source = {}
    for index in tensors:
        source[index] = len(graph.tensors)
        graph.tensors.append(copy.copy(graph.tensors[index]))
    for operator in graph.operators:
        operator.inputs = [source.get(int(index), int(index)) for index in operator.inputs]
    graph.inputs = [*graph.inputs, *source.values()]
