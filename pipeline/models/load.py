"""Checkpoints: a user's network and weights become a `Model`; wrong keys, shapes and classes are named."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.fx import GraphModule

from pipeline.core import CheckpointError, Model, TensorSpec
from pipeline.core.callables import import_callable
from pipeline.core.outputs import output_tuple
from pipeline.models.capture import example_inputs
from pipeline.recipe import ModelSource

_SHOWN_MISMATCHES = 5
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts nest the weights


def load(source: ModelSource, root: Path = Path()) -> Model:
    """Load the FP32 model that a recipe names.

    Args:
        source: A factory with a ``.safetensors`` or ``.pt`` state dict, or a ``torch.export`` program in a ``.pt2``.
        root: The folder that relative paths start from.

    Raises:
        CheckpointError: The file is missing, unreadable or holds pickled code; its keys or shapes are not the
            factory's; or the model does not run on inputs of the given shapes.
        RecipeError: The factory cannot be imported.
    """
    path = root / source.checkpoint
    if not path.is_file():
        raise CheckpointError("no such file", where=str(path), fix="paths are relative to the recipe")
    if path.suffix == ".pt2":
        program = _read_program(path)
        return _model(
            program.module(),
            source.inputs or _signature(program, path),
            source.outputs,
            source.classes,
            where=str(path),
        )
    assert source.factory is not None  # the recipe has checked it
    module = build(source.factory, source.kwargs, path, root=root)
    return _model(module, source.inputs, source.outputs, source.classes, where=str(path))


def build(factory: str, kwargs: dict[str, Any], weights: Path | None, *, root: Path = Path()) -> nn.Module:
    """A network in eval mode, from its factory; with weights from a file, or the factory's own where there is none.

    Raises:
        CheckpointError: The factory cannot be called so, or the weights are missing, unreadable or another network's.
        RecipeError: The factory cannot be imported.
    """
    try:
        module = import_callable(factory, root)(**kwargs)
    except TypeError as error:
        raise CheckpointError(f"cannot be called with these kwargs: {error}", where=factory) from error
    if not isinstance(module, nn.Module):
        raise CheckpointError(f"returned {type(module).__name__}, not a torch.nn.Module", where=factory)
    if weights is not None:
        if not weights.is_file():
            raise CheckpointError("no such file", where=str(weights), fix="paths are relative to the recipe")
        _fill(module, _read_weights(weights), weights)
    return module.eval()


def from_module(
    module: nn.Module,
    inputs: Iterable[TensorSpec],
    *,
    outputs: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> Model:
    """The model of a module that is already in memory; the module is copied and stays as it is.

    Raises:
        CheckpointError: The module does not run on inputs of these shapes, or returns something else than tensors.

    >>> model = from_module(nn.Linear(3, 2), [TensorSpec(name="x", shape=(3,))])
    >>> model.outputs, model.module.training
    (('output',), False)
    """
    module = copy.deepcopy(module)
    if not isinstance(module, GraphModule):  # an exported program carries its mode in its graph
        module.eval()
    return _model(module, tuple(inputs), tuple(outputs), tuple(classes), where=type(module).__name__)


def _model(
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[str, ...],
    classes: tuple[str, ...],
    *,
    where: str,
) -> Model:
    """Run the module once, so that a model that cannot run is refused here, and its outputs get names."""
    try:
        with torch.no_grad():
            result = module(*example_inputs(inputs))
    except Exception as error:  # a user's forward may raise anything
        shapes = ", ".join(f"{spec.name} {[1, *spec.shape]} {spec.dtype}" for spec in inputs)
        raise CheckpointError(
            f"the model fails on {shapes}: {_first_line(error)}", where=where, fix="correct model.inputs in the recipe"
        ) from error
    values = output_tuple(result)
    if not all(isinstance(value, Tensor) for value in values):
        kinds = ", ".join(type(value).__name__ for value in values)
        raise CheckpointError(
            f"the model returns {kinds}; it must return a tensor or a tuple of tensors",
            where=where,
            fix="wrap it; a transformers model returns a tuple with return_dict=False",
        )
    outputs = outputs or tuple("output" if not index else f"output_{index}" for index in range(len(values)))
    if len(outputs) != len(values):
        raise CheckpointError(
            f"{len(outputs)} names are given for {len(values)} outputs", where=where, fix="correct model.outputs"
        )
    if classes and values[0].shape[-1] != len(classes):
        raise CheckpointError(
            f"the model has {values[0].shape[-1]} logits, but {len(classes)} classes are named",
            where=where,
            fix="correct model.classes, or the factory's kwargs",
        )
    return Model(module=module, reference=module, inputs=inputs, outputs=outputs, classes=classes)


def _read_program(path: Path) -> torch.export.ExportedProgram:
    try:
        return torch.export.load(path)
    except Exception as error:  # a damaged archive fails in zipfile, JSON or torch, whichever meets it first
        raise CheckpointError(
            f"is not a torch.export program: {_first_line(error)}",
            where=str(path),
            fix="write it with torch.export.save, by this version of torch",
        ) from error


def _signature(program: torch.export.ExportedProgram, path: Path) -> tuple[TensorSpec, ...]:
    """The user's inputs of a program, without their batch dimension."""
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


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"is not a safetensors file: {error}", where=str(path)) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(
            f"holds pickled code, which is never run{f' ({culprit[1]})' if culprit else ''}",
            where=str(path),
            fix="save weights only: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')",
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"is not a torch checkpoint: {_first_line(error)}", where=str(path)) from None
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f"holds {type(content).__name__}, not a state dict of tensors",
            where=str(path),
            fix="save weights only: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')",
        )
    return dict(content)


def _fill(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load the weights, all of them and nothing else."""
    expected = module.state_dict()
    for name in expected.keys() - weights.keys():  # a tied weight is stored once, under either of its names
        twin = next((key for key in weights if key in expected and _same_memory(expected[key], expected[name])), None)
        if twin is not None:
            weights[name] = weights[twin]
    problems = [f"missing {name} {list(expected[name].shape)}" for name in expected if name not in weights]
    problems += [f"unexpected {name} {list(weights[name].shape)}" for name in weights if name not in expected]
    problems += [
        f"{name} is {list(weights[name].shape)} where the factory builds {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    problems += [
        f"{name} holds NaN or infinity"
        for name, tensor in weights.items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if problems:
        more = f"; and {len(problems) - _SHOWN_MISMATCHES} more" if len(problems) > _SHOWN_MISMATCHES else ""
        prefixed = bool(weights) and all(name.startswith("module.") for name in weights)
        raise CheckpointError(
            f"does not fit {type(module).__name__}: {'; '.join(problems[:_SHOWN_MISMATCHES])}{more}",
            where=str(path),
            fix="strip DataParallel's 'module.' from the keys"
            if prefixed
            else "give the factory and kwargs that the weights were trained with",
        )
    module.load_state_dict(weights)


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.numel() > 0


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
