"""What a module may be made of: parts that cannot be copied, captured or held in float32 are refused by name.

Some parts have an equal form that every later step can handle, and get it: wrappers of torch are taken off, weights in
another precision become float32, and an embedding with ``max_norm`` holds rows that are already as short as it asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipeline.core import CheckpointError, first_line
from pipeline.models.duplicate import copy_module

_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
"""Classes of torch that only wrap a module, and the attribute that holds it."""


def copied(module: nn.Module, *, where: str) -> nn.Module:
    """A copy of a user's module. Tensors that it keeps from an earlier computation become plain values.

    Raises:
        CheckpointError: It holds something that cannot be copied.
    """
    try:
        return copy_module(module)
    except Exception as error:  # whatever the user's own attributes raise
        raise CheckpointError(
            f"it cannot be copied: {first_line(error)}",
            where=where,
            fix="keep tensors as parameters or buffers, and open files and locks outside the module",
        ) from error


def plain(module: nn.Module, *, where: str) -> tuple[nn.Module, tuple[str, ...]]:
    """The module in float32, without wrappers; and notes on what was changed. The module itself is changed.

    Raises:
        CheckpointError: Names the part that no later step could handle, and the fix.
    """
    while (attribute := _WRAPPERS.get(type(module).__name__)) and isinstance(
        getattr(module, attribute, None), nn.Module
    ):
        module = getattr(module, attribute)
    for name, part in module.named_modules():
        _require_plain(name, part, where)
    _require_registered(module, where)
    _require_values(module, where)
    return module, (*_shorten_embeddings(module), *_widen(module))


def _require_plain(name: str, part: nn.Module, where: str) -> None:
    """Refuse compiled and quantized layers, and layers that have no weights yet."""
    called = f"module {name!r}" if name else "it"
    kind = type(part).__name__
    if isinstance(part, torch.jit.ScriptModule):
        raise CheckpointError(
            f"{called} is TorchScript, which holds no Python code to work on",
            where=where,
            fix="give the Python module that was scripted or traced, with its weights",
        )
    if ".quantized" in type(part).__module__:
        raise CheckpointError(
            f"{called} is the quantized layer {kind}", where=where, fix="give the float model; edgewright quantizes it"
        )
    for attribute, tensor in (*part._parameters.items(), *part._buffers.items()):
        if tensor is not None and is_lazy(tensor):
            raise CheckpointError(
                f"{called} ({kind}) has no {attribute} yet: a lazy layer gets its size from the first batch",
                where=where,
                fix="run the network once on a sample, or name the layer's input size in its code",
            )


def _require_registered(module: nn.Module, where: str) -> None:
    """Refuse layers that torch does not see, and functions on a module that would still use the original's layers."""
    registered = {id(part) for part in module.modules()}
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            hidden = [found for found in _modules_in(value) if id(found) not in registered]
            if attribute != "_modules" and any(True for found in hidden for _ in found.parameters()):
                raise CheckpointError(
                    f"{f'module {name!r}' if name else 'it'} keeps layers in the plain attribute {attribute!r}: torch "
                    "neither saves nor loads their weights",
                    where=where,
                    fix="use nn.ModuleList or nn.ModuleDict",
                )
    for name, part in module.named_modules():
        functions = (*vars(part).values(), *part._forward_hooks.values(), *part._forward_pre_hooks.values())
        if any(isinstance(function, FunctionType) and _holds_a_module(function) for function in functions):
            raise CheckpointError(
                f"{f'module {name!r}' if name else 'it'} has a function or hook that refers to a module by a variable: "
                "in a copy of the model it would still use the original's",
                where=where,
                fix="make it a method of the module, which copies refer to their own layers by",
            )


def _modules_in(value: Any) -> Iterator[nn.Module]:
    """The modules in a plain list, tuple or dictionary, at any depth."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            if isinstance(item, nn.Module):
                yield item
            else:
                yield from _modules_in(item)


def _holds_a_module(function: FunctionType) -> bool:
    """Whether a function's closure holds a module with weights."""
    for cell in function.__closure__ or ():
        try:
            held = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        if isinstance(held, nn.Module) and any(True for _ in held.parameters()):
            return True
    return False


def _require_values(module: nn.Module, where: str) -> None:
    """Refuse tensors without finite values, or in a form that is no plain array."""
    named = (*module.named_parameters(), *module.named_buffers())
    for name, tensor in named:
        problem = None
        if tensor.is_meta:
            problem, fix = "has no values (device meta)", "load the weights before"
        elif tensor.is_quantized or type(tensor.data) is not Tensor or tensor.layout != torch.strided:
            problem, fix = "is no plain tensor of numbers", "give the float model, with dense weights"
        elif tensor.is_complex():
            problem, fix = "is complex, which no target holds", "keep its real and imaginary parts apart"
        if problem is not None:
            raise CheckpointError(f"{name!r} {problem}", where=where, fix=fix)
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and not torch.isfinite(parameter).all():
            raise CheckpointError(f"{name!r} holds NaN or infinity", where=where, fix="give trained weights")


def _shorten_embeddings(module: nn.Module) -> tuple[str, ...]:
    """Shorten rows longer than ``max_norm`` once and for all; forward would do that, in place, when it reads one."""
    notes = []
    for name, part in module.named_modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.max_norm is not None:
            with torch.no_grad():
                every = torch.arange(part.num_embeddings)
                torch.embedding_renorm_(part.weight, every, part.max_norm, part.norm_type)
            part.max_norm = None
            notes.append(f"{name or 'embedding'}: rows are shortened to max_norm in the file, not at run time")
    return tuple(notes)


def _widen(module: nn.Module) -> tuple[str, ...]:
    """Weights in another precision become float32."""
    dtypes = {
        str(tensor.dtype).removeprefix("torch.")
        for tensor in (*module.parameters(), *module.buffers())
        if tensor.is_floating_point() and tensor.dtype != torch.float32
    }
    if not dtypes:
        return ()
    module.float()
    return (f"weights are float32; the model was given in {', '.join(sorted(dtypes))}",)
