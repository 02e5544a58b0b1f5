"""Signatures: what a model takes, read from the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from torch import Tensor
from torch.export import ExportedProgram

from pipeline.core import CheckpointError, DType, TensorSpec


def inputs_of(program: ExportedProgram, path: Path) -> tuple[TensorSpec, ...]:
    """The user's inputs of a program, without their batch dimension.

    Args:
        path: The program's file, for the message.

    Raises:
        CheckpointError: A size other than the batch is dynamic.
    """
    names = set(program.graph_signature.user_inputs)
    specs = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            value = node.meta.get("val")
            if not isinstance(value, Tensor) or value.ndim == 0:
                kind = "one number" if isinstance(value, Tensor) else type(value).__name__
                raise CheckpointError(
                    f"input {node.name!r} is {kind}, not a tensor with a batch in front",
                    where=str(path),
                    fix="export it with tensors (N, …) as its only inputs",
                )
            shape, dtype = value.shape, str(value.dtype).removeprefix("torch.")
            if dtype not in get_args(DType):
                raise CheckpointError(
                    f"input {node.name!r} is {dtype}; inputs are one of {', '.join(get_args(DType))}",
                    where=str(path),
                    fix="export it with a float32 input that forward converts",
                )
            if not all(isinstance(size, int) for size in shape[1:]):
                raise CheckpointError(
                    f"input {node.name!r} has dynamic sizes {list(map(str, shape))} beside the batch",
                    where=str(path),
                    fix="fix them in the recipe: model.inputs: [{name: ..., shape: [...]}]",
                )
            specs.append(TensorSpec(name=node.name, shape=tuple(shape[1:]), dtype=dtype))
    return tuple(specs)
