"""Signatures: what a model takes, read from the model itself."""

from __future__ import annotations

from pathlib import Path

from torch.export import ExportedProgram

from pipeline.core import CheckpointError, TensorSpec


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
            shape, dtype = node.meta["val"].shape, str(node.meta["val"].dtype).removeprefix("torch.")
            if not all(isinstance(size, int) for size in shape[1:]):
                raise CheckpointError(
                    f"input {node.name!r} has dynamic sizes {list(map(str, shape))} beside the batch",
                    where=str(path),
                    fix="fix them in the recipe: model.inputs: [{name: ..., shape: [...]}]",
                )
            specs.append(TensorSpec(name=node.name, shape=tuple(shape[1:]), dtype=dtype))
    return tuple(specs)
