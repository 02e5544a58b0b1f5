"""Arguments: how each input of a model reaches the parameters of its forward."""

from __future__ import annotations

import inspect
from inspect import Parameter

from torch import nn
from torch.fx import GraphModule

from pipeline.core import CheckpointError, TensorSpec

_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def keywords(module: nn.Module, inputs: tuple[TensorSpec, ...], *, where: str) -> tuple[str | None, ...]:
    """Per input, the keyword that forward takes it by; None where it is given by position.

    Inputs are given in their order. Where all of them are named as parameters of forward, or as keywords that it
    accepts, each reaches the parameter of its name.

    Raises:
        CheckpointError: Forward takes fewer inputs or needs more, or an input has the name of another's parameter.
    """
    if isinstance(module, GraphModule) and hasattr(module, "_in_spec"):  # a program knows its keywords by their names
        return _keywords_of_program(module, inputs)
    parameters = inspect.signature(module.forward).parameters
    positional = [name for name, each in parameters.items() if each.kind in _BY_POSITION]
    named_only = [name for name, each in parameters.items() if each.kind is Parameter.KEYWORD_ONLY]
    kinds = {each.kind for each in parameters.values()}
    names = [spec.name for spec in inputs]
    accepts = {name for name, each in parameters.items() if each.kind in (*_BY_POSITION[1:], Parameter.KEYWORD_ONLY)}
    if all(name in accepts for name in names) or (
        Parameter.VAR_KEYWORD in kinds and Parameter.VAR_POSITIONAL not in kinds and len(names) > len(positional)
    ):
        found = tuple(None if positional[index : index + 1] == [name] else name for index, name in enumerate(names))
    else:
        _require_no_swap(names, positional, where)
        found = (None,) * len(names)
    given = {name or positional[index] for index, name in enumerate(found) if name or index < len(positional)}
    missing = [
        name for name in (*positional, *named_only) if parameters[name].default is Parameter.empty and name not in given
    ]
    if missing:
        raise CheckpointError(
            f"forward needs {missing[0]!r} too; model.inputs has {', '.join(names)}",
            where=where,
            fix=f"add {missing[0]!r} to model.inputs, or give it a default in forward",
        )
    if found.count(None) > len(positional) and Parameter.VAR_POSITIONAL not in kinds:
        raise CheckpointError(
            f"forward takes {len(positional)} inputs ({', '.join(positional)}), and model.inputs has {len(names)}",
            where=where,
            fix="list forward's parameters in model.inputs",
        )
    return found


def _keywords_of_program(program: GraphModule, inputs: tuple[TensorSpec, ...]) -> tuple[str | None, ...]:
    """Per input, the keyword that a ``torch.export`` program was exported with; its inputs are in that order."""
    _, by_name = program._in_spec.children()
    names = list(by_name.context) if by_name.num_children else []
    return (*(None,) * (len(inputs) - len(names)), *names)[: len(inputs)]


def _require_no_swap(names: list[str], positional: list[str], where: str) -> None:
    """Refuse an input that has the name of one parameter and the position of another."""
    for index, name in enumerate(names):
        if name in positional and positional.index(name) != index:
            takes = positional[index] if index < len(positional) else "more"
            raise CheckpointError(
                f"input {index + 1} is called {name!r}, and forward takes {takes!r} there",
                where=where,
                fix=f"order model.inputs as forward does: {', '.join(positional)}",
            )
