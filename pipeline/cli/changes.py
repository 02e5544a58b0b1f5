"""Changes to a recipe that a command line asks for: single values, and which stages and targets take part.

They are made in the mapping that the file holds, before it is validated: what is checked, run and recorded in the
report is one recipe, whoever wrote which part of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.core import RecipeError, did_you_mean
from pipeline.core.strict_yaml import parse_yaml
from pipeline.recipe import Place, Recipe, TargetStep, parse_recipe, read_values

_ASSIGNMENT = re.compile(r'((?:"[^"]*"|[^="])*)=(.*)', re.DOTALL)
"""A path, in which quoted keys may hold anything, and a value."""
_PART = re.compile(r'"([^"]+)"|\[(\d+)\]|([^.\[\]"]+)')
"""One part of a path: a quoted key, a position in brackets, or a plain key or position."""


Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Another value for a key of the recipe, in YAML, such as stages.prune.macs_ratio=0.5; repeatable.",
    ),
]
Stages = Annotated[
    str | None, typer.Option("--stages", metavar="NAMES", help="Only these of the recipe's stages: prune,quantize.")
]
Targets = Annotated[
    str | None,
    typer.Option(
        "--targets",
        metavar="NAMES",
        help="Only these targets: onnx,tflite. One that the recipe does not list gets its defaults.",
    ),
]


@dataclass(frozen=True, slots=True)
class Changes:
    """What a command line changes in a recipe; nothing by default."""

    values: Sequence[str] = ()
    stages: str | None = None
    targets: str | None = None


@dataclass(slots=True)
class _Changed:
    """A recipe's mapping, and which option has changed what in it."""

    recipe: dict[str, Any]
    options: dict[Place, str] = field(default_factory=dict)


def read_changed(path: Path, changes: Changes = Changes()) -> Recipe:
    """Read a recipe, with the changes of the command line.

    Raises:
        RecipeError: The file, or the recipe with its changes, is wrong; the message names the file, the field, the
            option that changed it, and the fix.
    """
    changed = _Changed(read_values(path))
    for text in changes.values:
        _set(changed, text)
    if changes.stages is not None:
        _select_stages(changed, changes.stages)
    if changes.targets is not None:
        _select_targets(changed, changes.targets)
    return parse_recipe(changed.recipe, where=str(path), options=changed.options)


def _set(changed: _Changed, text: str) -> None:
    """Carry out ``--set path=value``."""
    option = f"--set {text}"
    found = _ASSIGNMENT.fullmatch(text)
    parts = [] if found is None else [one or two or three for one, two, three in _PART.findall(found[1])]
    if found is None or not parts:
        problem = "gives no value" if found is None else "names no key"
        raise RecipeError(problem, where=option, fix="write a key and a value: --set stages.prune.macs_ratio=0.5")
    try:
        value = parse_yaml(found[2])
    except ValueError as error:
        raise RecipeError(f"its value is not YAML: {error}", where=option, fix="quote it for the shell") from None
    spot: Any = changed.recipe
    place: Place = ()
    while parts:
        key, rest = _key(spot, parts, place, option)
        if rest:
            spot = _inside(spot, key, (*place, key), option)
        else:
            spot[key] = value
        place, parts = (*place, key), rest
    changed.options[place] = option


def _key(spot: Any, parts: list[str], place: Place, option: str) -> tuple[str | int, list[str]]:
    """The key of a mapping or the position in a list that the first part of a path means, and the parts behind it.

    A stage or target may be named in place of its position: ``stages.prune`` is ``stages.0.prune``.
    """
    first, *rest = parts
    if not isinstance(spot, list):
        return first, rest
    if first.isdecimal() and int(first) < len(spot):
        return int(first), rest
    names = [_name(entry) for entry in spot]
    if names.count(first) == 1:
        return names.index(first), parts
    if first.isdecimal():
        problem = f"{_written(place)} has no {first}: it has {len(spot)}, counted from 0"
    elif first in names:
        problem = f"{_written(place)} has several {first!r}"
    else:
        problem = f"{_written(place)} has no {first!r}; {did_you_mean(first, names)}"
    raise RecipeError(problem, where=option, fix=f"name an entry by its position, such as {_written(place)}.0")


def _inside(spot: Any, key: str | int, place: Place, option: str) -> Any:
    """The mapping or list at a key, which is made where nothing is there, or only a name."""
    found = spot.get(key) if isinstance(spot, dict) else spot[key]
    if isinstance(found, str) and not isinstance(spot, dict):
        found = spot[key] = {found: {}}
    elif found is None:
        found = spot[key] = {}
    if not isinstance(found, dict | list):
        problem = f"{_written(place)} is {found!r}, which has no parts"
        raise RecipeError(problem, where=option, fix=f"set it as a whole: --set '{_written(place)}={{key: value}}'")
    return found


def _select_stages(changed: _Changed, text: str) -> None:
    """Carry out ``--stages``: they keep the order and the settings that they have in the recipe."""
    option = f"--stages {text}"
    names = _names(text, option)
    listed = _list_of(changed.recipe, "stages")
    known = [_name(entry) for entry in listed]
    for name in names:
        if name not in known:
            fix = "add it to the recipe's stages, with its settings"
            raise RecipeError(f"the recipe has no stage {name!r}; {did_you_mean(name, known)}", where=option, fix=fix)
    kept = [index for index, name in enumerate(known) if name in names]
    _replace(changed, "stages", [listed[index] for index in kept], kept, option)


def _select_targets(changed: _Changed, text: str) -> None:
    """Carry out ``--targets``: with the recipe's options, or the defaults of a target that it does not list."""
    option = f"--targets {text}"
    names = _names(text, option)
    for name in names:
        if name not in TargetStep.model_fields:
            problem = f"there is no target {name!r}; {did_you_mean(name, TargetStep.model_fields)}"
            raise RecipeError(problem, where=option, fix=f"name some of {', '.join(TargetStep.model_fields)}")
    listed = _list_of(changed.recipe, "targets")
    known = [_name(entry) for entry in listed]
    kept = [known.index(name) if name in known else None for name in names]
    entries = [name if index is None else listed[index] for name, index in zip(names, kept, strict=True)]
    _replace(changed, "targets", entries, kept, option)


def _replace(changed: _Changed, key: str, entries: list[Any], kept: Sequence[int | None], option: str) -> None:
    """Put other entries into a list; ``kept`` says where each was before, so that ``--set`` is still known for it."""
    moved: dict[Place, str] = {}
    for place, made_by in changed.options.items():
        if place[0] != key or len(place) == 1:
            moved[place] = made_by
        elif isinstance(place[1], int) and place[1] in kept:
            moved[key, kept.index(place[1]), *place[2:]] = made_by
    changed.recipe[key] = entries
    changed.options = {**moved, (key,): option}


def _names(text: str, option: str) -> list[str]:
    """The names in a list with commas, each once."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise RecipeError("names nothing", where=option, fix="give names with commas between them, or leave it out")
    return names


def _list_of(recipe: Mapping[str, Any], key: str) -> list[Any]:
    """A list of the recipe; what is no list is left to the recipe's own checks."""
    found = recipe.get(key)
    return found if isinstance(found, list) else []


def _name(entry: Any) -> str:
    """The name of a stage or target, which is written alone or with its options."""
    return str(next(iter(entry), "")) if isinstance(entry, dict) else str(entry)


def _written(place: Place) -> str:
    return ".".join(map(str, place))
