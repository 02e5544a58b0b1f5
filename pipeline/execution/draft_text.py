"""A drafted recipe as a YAML file with comments, which a person reads and goes on from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.core.strict_yaml import parse_yaml
from pipeline.execution.draft import Draft

_OF_MODEL = {"inputs": "inputs", "classes": "classes"}
_MORE = """\
# More stages, which run in this order; both need labels or the original as teacher, and minutes to hours:
#   - prune: {macs_ratio: 0.6}
#   - distill: {epochs: 3}
"""


def text_of(found: Draft) -> str:
    """The recipe's file."""
    recipe, notes = found.recipe, found.notes
    lines = [
        "# Written by 'edgewright init'. Paths are relative to this file.",
        "# 'edgewright check' says what a run will do; 'edgewright schema recipe' prints every key.",
        f"name: {_flow(recipe['name'])}",
        *_block("model", recipe["model"], notes, _OF_MODEL),
        *_block("data", recipe["data"], notes, {"preprocessing": "preprocessing"}),
    ]
    if "task" in recipe:
        lines.append(f"task: {_flow(recipe['task'])}{_comment(notes.get('task'))}")
    lines += [
        *_MORE.splitlines(),
        "stages:",
        *(f"  - {name}: {_flow(options)}" for step in recipe["stages"] for name, options in step.items()),
        f"targets: {_flow(recipe['targets'])}  # those that are installed here",
        f"budget: {_flow(recipe['budget'])}  # the first metric may fall by one percentage point",
    ]
    text = "\n".join(lines) + "\n"
    assert parse_yaml(text) == {key: value for key, value in recipe.items() if not key.startswith("_")}
    return text


def _block(key: str, values: Mapping[str, Any], notes: Mapping[str, str], noted: Mapping[str, str]) -> Iterator[str]:
    yield f"{key}:{_comment(notes.get(key))}"
    for name, value in values.items():
        if name in noted and notes.get(noted[name]):
            yield f"  # {notes[noted[name]]}"
        yield f"  {_flow(name)}: {_flow(value)}"


def _comment(note: str | None) -> str:
    return f"  # {note}" if note else ""


def _flow(value: Any) -> str:
    """A value on one line: plain words stay plain, everything else is JSON, which YAML reads."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str) and value.replace("_", "").replace("/", "").replace(".", "").replace("-", "").isalnum():
        try:
            if parse_yaml(value) == value:
                return value
        except ValueError:
            pass
    return json.dumps(value, ensure_ascii=False)
