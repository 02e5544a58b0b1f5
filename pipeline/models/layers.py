"""Layers by name: what a name, a pattern of names or a type of layer stands for in a network."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.fx import GraphModule

from pipeline.core import EdgewrightError, StageError
from pipeline.core.callables import parents

TYPE = "type:"
"""What stands before the name of a class of layers."""
_NEAREST = 3
_PATTERN = "*?[]."


@dataclass(frozen=True, slots=True)
class Layer:
    """A module of a network.

    Attributes:
        types: The names of its class and of that class's own bases.
        weighted: Whether it, or a module in it, has weights.
    """

    types: tuple[str, ...]
    weighted: bool


def layers_of(module: nn.Module) -> dict[str, Layer]:
    """Every named module inside a network. A program keeps their names and types in its operators alone."""
    found = {
        name: Layer(_types(type(part)), any(True for _ in part.parameters()))
        for name, part in module.named_modules()
        if name
    }
    if isinstance(module, GraphModule):
        for node in module.graph.nodes:
            for name, kind in node.meta.get("nn_module_stack", {}).values():
                for parent in filter(None, parents(str(name))):
                    found.setdefault(parent, Layer((), weighted=True))
                if name:
                    found[str(name)] = Layer(_types(kind), weighted=True)
    return found


def matching(
    layers: Mapping[str, Layer], patterns: Sequence[str], *, where: str, refusal: type[EdgewrightError] = StageError
) -> dict[str, tuple[str, ...]]:
    """The layers that each pattern stands for, in the network's order.

    Args:
        layers: From `layers_of`.
        patterns: A module's name, a pattern with ``*``, ``?`` and ``[…]``, in which ``*`` also matches dots, or
            ``type:`` and the name of a class, such as ``type:LayerNorm``.
        where: The field that has the patterns, for the message.

    Raises:
        EdgewrightError: A pattern stands for no layer; the message names the nearest ones.

    >>> found = layers_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)))
    >>> matching(found, ["1", "type:Linear", "*"], where="skip")
    {'1': ('1',), 'type:Linear': ('0', '2'), '*': ('0', '1', '2')}
    """
    found = {
        pattern: tuple(name for name, layer in layers.items() if _is(name, layer, pattern)) for pattern in patterns
    }
    for pattern, names in found.items():
        if not names:
            raise _unknown(pattern, layers, where, refusal)
    return found


def matching_in(modules: Iterable[nn.Module], patterns: Sequence[str], *, where: str) -> dict[str, tuple[str, ...]]:
    """The same, of layers that are in any of these networks: an earlier stage may have removed some of the original's.

    Raises:
        StageError: A pattern stands for no layer.
    """
    if not patterns:
        return {}
    layers = {name: layer for module in modules for name, layer in layers_of(module).items()}
    return matching(layers, patterns, where=where)


def is_within(name: str, containers: Sequence[str]) -> bool:
    """Whether a module is one of these, or inside one."""
    return any(name == container or name.startswith(f"{container}.") for container in containers)


def _is(name: str, layer: Layer, pattern: str) -> bool:
    kind = pattern.removeprefix(TYPE)
    return kind in layer.types if kind != pattern else name == pattern or fnmatchcase(name, pattern)


def _types(kind: object) -> tuple[str, ...]:
    """Of a class its name and its bases'; a program has the dotted name of the class, or the class itself."""
    if isinstance(kind, type):
        return tuple(base.__name__ for base in kind.__mro__ if base not in (nn.Module, object))
    return (str(kind).rpartition(".")[2],)


def _unknown(pattern: str, layers: Mapping[str, Layer], where: str, refusal: type[EdgewrightError]) -> EdgewrightError:
    if pattern.startswith(TYPE):
        known = dict.fromkeys(layer.types[0] for layer in layers.values() if layer.types)
        nearest = _nearest(pattern.removeprefix(TYPE), known)
        problem = f"the model has no layer of the {pattern.replace(':', ' ')!r}; the nearest are {nearest}"
        return refusal(problem, where=where, fix="name the class of a layer: type:Linear")
    what = "no layer's name matches" if set(pattern) & set("*?[") else "the model has no module"
    problem = f"{what} {pattern!r}; the nearest are {_nearest(pattern.strip(_PATTERN), layers)}"
    return refusal(problem, where=where, fix="name modules as model.named_modules() does, or by a pattern: head.*")


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    found = difflib.get_close_matches(name, names, n=_NEAREST, cutoff=0.0)
    return ", ".join(map(repr, found)) or "none: it holds no other module"
