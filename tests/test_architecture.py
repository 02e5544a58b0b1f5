"""The house that CONTRIBUTING draws: rooms on floors, arrows downwards only, no cycle, no room that holds it all.

A room is a direct child of a folder, a module or a package. It stands one floor above the highest room that it imports.
Every import counts, also those inside functions and those for type checkers.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

Arrows = Mapping[str, Set[str]]
"""What each room imports of the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """What a folder may grow to.

    Attributes:
        arrows: How many pairs of rooms may import each other's names, in one direction.
        largest: The share of all lines that one room may hold; ``spared`` may hold more.
    """

    folder: str
    rooms: int | None = None
    floors: int | None = None
    arrows: int | None = None
    largest: float = 1.0
    spared: tuple[str, ...] = ()


HOUSES = [
    House(folder="pipeline", rooms=14, floors=7, largest=1 / 3, spared=("stages",)),
    House(folder="pipeline/stages/quantize", floors=6, arrows=30),
]

PACKAGES = [
    folder.relative_to(ROOT).as_posix()
    for root in ("pipeline", "targets")
    for folder in (ROOT / root, *sorted((ROOT / root).rglob("*/")))
    if any(folder.glob("*.py"))
]


@pytest.mark.parametrize("house", HOUSES, ids=lambda house: house.folder)
def test_rooms_stay_few_and_low_when_the_code_grows(house: House) -> None:
    arrows = arrows_of(ROOT / house.folder)
    floors = floors_of(arrows)
    drawn = "\n".join(f"{floors[room]} {room}: {', '.join(sorted(arrows[room]))}" for room in sorted(arrows))
    assert house.rooms is None or len(arrows) <= house.rooms, drawn
    assert house.floors is None or max(floors.values()) <= house.floors, drawn
    assert house.arrows is None or sum(map(len, arrows.values())) <= house.arrows, drawn


@pytest.mark.parametrize("house", HOUSES, ids=lambda house: house.folder)
def test_no_room_holds_most_of_the_code_when_the_code_grows(house: House) -> None:
    lines = {room: sum(len(file.read_text().splitlines()) for file in files_of(path)) for room, path in rooms_of(house)}
    shares = {room: count / sum(lines.values()) for room, count in lines.items()}
    assert {room: share for room, share in shares.items() if share > house.largest and room not in house.spared} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_form_no_cycle_within_a_package(package: str) -> None:
    floors_of(arrows_of(ROOT / package))


def test_targets_stand_between_the_rooms_when_they_are_counted_as_one() -> None:
    floors = floors_of(arrows_of(ROOT / "pipeline", ROOT / "targets"))
    assert floors["models"] < floors["targets"] < floors["execution"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.py": "", "b.py": "from house import a", "c.py": "import house.b"}, {"a": 1, "b": 2, "c": 3}),
        ({"a.py": "", "b/__init__.py": "", "b/c.py": "def f():\n    from house.a import x"}, {"a": 1, "b": 2}),
        ({"a.py": "", "b.py": "if TYPE_CHECKING:\n    from house.a import x"}, {"a": 1, "b": 2}),
        ({"a.py": "", "b.py": "from . import a", "c/d.py": "from ..b import x"}, {"a": 1, "b": 2, "c": 3}),
        ({"a.py": "import os", "b.py": "from house import absent"}, {"a": 1, "b": 1}),
    ],
    ids=["modules", "inside a function", "for type checkers", "relative", "nothing of ours"],
)
def test_floors_count_every_import_when_a_folder_is_read(
    tmp_path: Path, files: dict[str, str], expected: dict[str, int]
) -> None:
    write(tmp_path / "house", files)
    assert floors_of(arrows_of(tmp_path / "house")) == expected


def test_floors_are_refused_when_rooms_import_each_other(tmp_path: Path) -> None:
    write(tmp_path / "house", {"a.py": "import house.b", "b/c.py": "from house.a import x"})
    with pytest.raises(AssertionError, match=r"a -> b -> a|b -> a -> b"):
        floors_of(arrows_of(tmp_path / "house"))


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def rooms_of(house: House) -> list[tuple[str, Path]]:
    folder = ROOT / house.folder
    return [(path.stem, path) for path in sorted(folder.iterdir()) if is_room(path)]


def is_room(path: Path) -> bool:
    return bool(files_of(path)) and path.name != "__init__.py"


def files_of(path: Path) -> list[Path]:
    """A module, or all modules of a package."""
    return sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.suffix == ".py" else []


def arrows_of(folder: Path, *whole: Path) -> Arrows:
    """What the rooms of a folder import of each other, and of other folders, each of which counts as one room."""
    root = next(parent for parent in folder.parents if not (parent / "__init__.py").exists())
    prefix = f"{'.'.join(folder.relative_to(root).parts)}."
    rooms = {f"{prefix}{path.stem}": path for path in sorted(folder.iterdir()) if is_room(path)}
    rooms |= {path.name: path for path in whole}
    inside = {
        name: [imported for file in files_of(path) for imported in imports_of(file, root)]
        for name, path in rooms.items()
    }
    return {
        name.removeprefix(prefix): {
            other.removeprefix(prefix)
            for other in rooms.keys() - {name}
            if any(f"{found}.".startswith(f"{other}.") for found in imported)
        }
        for name, imported in inside.items()
    }


def path_of(name: str, root: Path) -> Path | None:
    """The file of a module or package; None where it is not one of ours."""
    path = root.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imports_of(file: Path, root: Path) -> Iterator[str]:
    """The dotted names of all that a file imports; of ``from a import b`` it is ``a.b`` where that is a module."""
    parts = file.relative_to(root).with_suffix("").parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = ".".join([*parts[: len(parts) - node.level], *filter(None, [node.module])])
            absolute = (node.module or "") if node.level == 0 else module
            for alias in node.names:
                inner = f"{absolute}.{alias.name}"
                yield inner if path_of(inner, root) or root.joinpath(*inner.split(".")).is_dir() else absolute


def floors_of(arrows: Arrows) -> dict[str, int]:
    """Each room's floor, counted from 1."""
    try:
        order = list(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        raise AssertionError(f"imports go in a circle: {' -> '.join(reversed(error.args[1]))}") from None
    floors: dict[str, int] = {}
    for room in order:
        floors[room] = 1 + max((floors[imported] for imported in arrows.get(room, ())), default=0)
    return floors


def test_no_function_takes_more_than_sixty_lines() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for top in ("pipeline", "targets")
        for path in sorted((ROOT / top).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno + 1 > 60
    ]
    assert long == []
