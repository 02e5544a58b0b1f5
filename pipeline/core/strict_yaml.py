"""YAML as a recipe needs it: the core schema of YAML 1.2, and nothing that is ambiguous.

PyYAML alone reads ``1e-3`` as text and ``no`` as a boolean, takes the last of two equal keys, and copies aliases
without bound.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

T = TypeVar("T")

MAX_VALUES = 100_000
"""Values in a file, with each alias counted as often as it is used."""

_TAG = "tag:yaml.org,2002:"
_CORE = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": r"<<",
}
"""What an unquoted scalar is (https://yaml.org/spec/1.2.2/#103-core-schema); any other is text."""


def parse_yaml(text: str) -> Any:
    """The value of one YAML document.

    Raises:
        ValueError: Says what is wrong, and in which line.

    >>> parse_yaml("{rate: 1e-3, classes: [yes, no]}")
    {'rate': 0.001, 'classes': ['yes', 'no']}
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader that knows fewer tags
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise ValueError(f"line {mark.line + 1}: {problem}" if mark else problem) from None
    except yaml.YAMLError as error:
        raise ValueError(str(error).partition("\n")[0]) from None
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None


def dump_yaml(value: Any) -> str:
    r"""YAML that `parse_yaml`, and any reader of YAML 1.1, reads as the same value.

    >>> dump_yaml({"no": "1e-3"})
    "'no': '1e-3'\n"
    """
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


_RESOLVERS = [(f"{_TAG}{kind}", re.compile(f"(?:{form})\\Z")) for kind, form in _CORE.items()]


class _Dumper(yaml.SafeDumper):
    """Quotes texts that either version of YAML would read as something else."""

    yaml_implicit_resolvers = {**yaml.SafeDumper.yaml_implicit_resolvers, None: _RESOLVERS}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {None: _RESOLVERS}
    yaml_constructors = {
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (None, *(f"{_TAG}{kind}" for kind in ("null", "str", "seq", "map")))
    }

    def get_single_node(self) -> Node | None:
        node = super().get_single_node()
        if node is not None and _size(node, {}) > MAX_VALUES:
            raise ConstructorError(None, None, f"its aliases stand for more than {MAX_VALUES} values", None)
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise ConstructorError(None, None, "a key must be text", key.start_mark)
            if (key.tag, key.value) in seen:
                raise ConstructorError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
            seen.add((key.tag, key.value))
        return node


def _size(node: Node, known: dict[int, int | None]) -> int:
    """Values in a node, with each alias counted as often as it is used."""
    if id(node) not in known:
        known[id(node)] = None
        parts = node.value if isinstance(node, CollectionNode) else []
        inside = [part for entry in parts for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in inside)
    size = known[id(node)]
    if size is None:
        raise ConstructorError(None, None, "a value contains itself", node.start_mark)
    return size


def _bool(_loader: Any, node: ScalarNode) -> bool:
    return _parsed(node, lambda text: {"true": True, "false": False}[text.lower()])


def _int(_loader: Any, node: ScalarNode) -> int:
    return _parsed(node, lambda text: int(text, 0 if text[:2] in ("0o", "0x") else 10))


def _float(_loader: Any, node: ScalarNode) -> float:
    return _parsed(node, lambda text: float(re.sub(r"^([-+]?)\.(?=[in])", r"\1", text.lower())))


def _parsed(node: ScalarNode, parse: Callable[[str], T]) -> T:
    try:
        return parse(node.value)
    except (ValueError, KeyError):
        kind = node.tag.removeprefix(_TAG)
        shown = node.value if len(node.value) < 50 else f"{node.value[:47]}…"
        raise ConstructorError(None, None, f"{shown!r} is no {kind} that can be read", node.start_mark) from None


for _kind, _construct in (("bool", _bool), ("int", _int), ("float", _float)):
    _Loader.add_constructor(f"{_TAG}{_kind}", _construct)
