"""The page of every key of the recipe, ``docs/recipe.md``, from the recipe's schema.

``python -m tests.recipe_reference`` writes the page again; ``tests/test_docs.py`` fails where it is behind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.recipe import Recipe

PAGE = Path(__file__).parents[1] / "docs" / "recipe.md"
Node = Mapping[str, Any]

_TOP = "Top level"
_HEADING = """# Recipe reference

Every key of a recipe, with its type, its default and its meaning. `python -m tests.recipe_reference` writes this page
from the schema, and a test fails when the page is out of date. `edgewright schema recipe` prints the same as a JSON
Schema, with which editors complete keys and mark mistakes.

A recipe is a YAML file. Paths are relative to it. An unknown key is refused with the nearest valid one.
So is a value of another type: `"0.5"` is not a number, and `yes` is not 1.

"""


def main() -> None:
    """Write the page again."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page as Markdown."""
    schema = Recipe.model_json_schema()
    defs = schema["$defs"]
    places = places_of(schema, defs)
    named = {name: paths for name, paths in places.items() if not is_list_entry(defs[name])}
    sections = [
        _section(_TOP, schema, defs, places, also=[]),
        *(_section(first, defs[name], defs, places, also=others) for name, (first, *others) in named.items()),
    ]
    return _HEADING + "\n".join(sections)


def places_of(schema: Node, defs: Mapping[str, Node]) -> dict[str, list[str]]:
    """Where each definition is written, as ``prune.recover``, in the order of the recipe, depth first.

    Stages and targets are named as such: ``prune``, not ``stages.prune``.
    """
    found: dict[str, list[str]] = {}

    def walk(node: Node, prefix: str) -> None:
        for key, value in properties(node).items():
            for name in references(value):
                path = "" if is_list_entry(defs[name]) else f"{prefix}.{key}".lstrip(".")
                if path not in (paths := found.setdefault(name, [])):
                    paths.append(path)
                walk(defs[name], path)

    walk(schema, "")
    return found


def properties(node: Node) -> Node:
    """Keys of a definition; a list entry has them in its second form."""
    found: Node = (node["anyOf"][1] if is_list_entry(node) else node).get("properties", {})
    return found


def is_list_entry(node: Node) -> bool:
    """Whether it is an entry of ``stages`` or ``targets``: a bare name, or a name with options."""
    return any("enum" in form for form in node.get("anyOf", ()))


def references(node: Any) -> Iterator[str]:
    """The names of all definitions that a value may hold."""
    if isinstance(node, Mapping):
        if "$ref" in node:
            yield node["$ref"].rpartition("/")[2]
        for key, value in node.items():
            if key != "default":
                yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def _section(
    title: str, node: Node, defs: Mapping[str, Node], places: Mapping[str, list[str]], *, also: list[str]
) -> str:
    required = node.get("required", ())
    rows = [
        [f"`{key}`", type_of(value, defs, places), _default(key, value, required), _cell(value["description"])]
        for key, value in properties(node).items()
    ]
    heading = f"`{title}`" if title != _TOP else title
    same = f"\n\nThe same keys: {', '.join(f'`{path}`' for path in also)}." if also else ""
    text = _plain(node.get("description", ""))
    table = "\n".join(
        ["| Key | Type | Default | Meaning |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    )
    return f"{'#' * min(2 + title.count('.'), 4)} {heading}\n\n{text}{same}\n\n{table}\n"


def type_of(node: Node, defs: Mapping[str, Node], places: Mapping[str, list[str]]) -> str:
    """A value's type in words, with its bounds; a definition is a link to its section."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        return _entries(defs[name], places) if is_list_entry(defs[name]) else _link(places[name][0])
    if "anyOf" in node:
        forms = [type_of(form, defs, places) for form in node["anyOf"] if form.get("type") != "null"]
        return " or ".join(dict.fromkeys(forms))
    if "enum" in node or "const" in node:
        return ", ".join(f"`{json.dumps(value).strip(chr(34))}`" for value in node.get("enum", [node.get("const")]))
    if node["type"] == "array":
        if "prefixItems" in node:
            return f"[{', '.join(type_of(item, defs, places) for item in node['prefixItems'])}]"
        return f"list of {type_of(node['items'], defs, places)}"
    if node["type"] == "object":
        values = node.get("additionalProperties")
        return f"mapping to {type_of(values, defs, places)}" if isinstance(values, Mapping) else "mapping"
    return _scalar(node)


def _entries(node: Node, places: Mapping[str, list[str]]) -> str:
    """``prune``, ``distill`` or ``quantize``, each a link to its options."""
    names = [name for value in properties(node).values() for name in references(value)]
    return ", ".join(_link(places[name][0]) for name in names)


def _scalar(node: Node) -> str:
    """``number > 0, ≤ 1``."""
    names = {"boolean": "`true`, `false`", "string": "text", "integer": "integer", "number": "number"}
    kind = "path" if node.get("format") == "path" else names[node["type"]]
    if ":" in node.get("pattern", ""):
        kind = "`module:callable`" if r"\w+(\.\w+)*:" in node["pattern"] else "`vendor:chip`"
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    bounds = [f"{sign} {_number(node[key])}" for key, sign in signs.items() if key in node]
    return " ".join([kind, ", ".join(bounds)]).strip()


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _default(key: str, node: Node, required: Any) -> str:
    """As it would be written; a definition's own defaults stand in its section."""
    if key in required:
        return "required"
    value = node.get("default")
    if value is None:
        return "–"
    if "$ref" in node or any("$ref" in form for form in node.get("anyOf", ())):
        return "its defaults"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _link(path: str) -> str:
    return f"[`{path}`](#{re.sub(r'[^a-z0-9_-]', '', path.lower())})"


def _cell(text: str) -> str:
    return _plain(text).replace("|", r"\|")


def _plain(text: str) -> str:
    """A docstring as one paragraph of Markdown for each of its own."""
    paragraphs = text.replace("``", "`").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs if "Attributes:" not in paragraph)


if __name__ == "__main__":
    main()
