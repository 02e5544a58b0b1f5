"""Damage stored results in many ways, and run again: none may be used, and none may stop a run.

``python -m tests.torture.store --count 200 --seed 1`` damages one file of a finished store at a time (bits flipped,
cut off, removed, exchanged for another, appended to), runs the recipe again, twice, and compares. ``--pairs 15`` starts
two runs at once on one empty store, each with a folder of its own.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.execution.apply import run
from pipeline.progress import console
from pipeline.recipe import read_recipe
from pipeline.stages import benchmark
from tests.torture.runs import differences_of, leftovers, result_of, start, write_project

Damage = Callable[[Path, random.Random, list[Path]], None]


def flip(file: Path, rng: random.Random, _: list[Path]) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice((1, 1, 8))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def cut(file: Path, rng: random.Random, _: list[Path]) -> None:
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])


def exchange(file: Path, rng: random.Random, files: list[Path]) -> None:
    file.write_bytes(rng.choice([other for other in files if other != file]).read_bytes())


def remove(file: Path, _: random.Random, __: list[Path]) -> None:
    file.unlink()


def append(file: Path, rng: random.Random, _: list[Path]) -> None:
    file.write_bytes(file.read_bytes() + rng.randbytes(rng.randrange(1, 100)))


def remove_folder(file: Path, _: random.Random, __: list[Path]) -> None:
    shutil.rmtree(file.parent)
    file.parent.mkdir()


def make_folder(file: Path, _: random.Random, __: list[Path]) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: tuple[Damage, ...] = (flip, flip, cut, exchange, remove, append, remove_folder, make_folder)


def torture(count: int, seed: int, *, say: Any = print) -> list[str]:
    """What was wrong after damages, of which there were ``count``."""
    rng, failures = random.Random(seed), list[str]()
    with _quick(), tempfile.TemporaryDirectory(prefix="edgewright-store-") as scratch:
        base = Path(scratch) / "quadrants"
        base.mkdir()
        write_project(base)
        recipe, store = read_recipe(base / "recipe.yaml"), base / ".store"
        sys.path.append(str(base))
        run(recipe, base / "out", root=base)
        expected, kept = result_of(base / "out"), shutil.copytree(store, Path(scratch) / "kept")
        for number in range(count):
            shutil.rmtree(store)
            shutil.copytree(kept, store)
            files = sorted(file for file in store.rglob("*") if file.is_file() and not file.name.startswith("."))
            file, damage = rng.choice(files), rng.choice(DAMAGES)
            what = f"{damage.__name__} {file.relative_to(store)}"
            damage(file, rng, files)
            for attempt in ("the next run", "the run after it"):
                try:
                    run(recipe, base / "out", root=base)
                except Exception as error:  # whatever it is, the damaged store has caused it
                    failures.append(f"{what}: {attempt}: {type(error).__name__}: {error}")
                    break
                if differences := differences_of(expected, result_of(base / "out")):
                    failures.append(f"{what}: {attempt}: {differences}")
                    break
            if (number + 1) % 10 == 0:
                say(f"{number + 1} damages, {len(failures)} failures")
    return failures


@contextmanager
def _quick() -> Iterator[None]:
    """Short timings, and no lines of progress."""
    before, search_path = benchmark.SECONDS_PER_CANDIDATE, list(sys.path)
    console.quiet, benchmark.SECONDS_PER_CANDIDATE = True, 0.02
    try:
        yield
    finally:
        console.quiet, benchmark.SECONDS_PER_CANDIDATE = False, before
        sys.path[:] = search_path


def race(pairs: int, *, say: Any = print) -> list[str]:
    """What was wrong after pairs of runs that started together on one store."""
    failures = list[str]()
    with tempfile.TemporaryDirectory(prefix="edgewright-race-") as scratch:
        base = Path(scratch) / "quadrants"
        base.mkdir()
        write_project(base)
        expected: dict[str, Any] | None = None
        for number in range(pairs):
            folder = shutil.copytree(base, Path(scratch) / f"pair{number}")
            both = [start(folder, out=folder / name) for name in ("a", "b")]
            texts = [process.communicate()[1] for process in both]
            for process, text, name in zip(both, texts, ("a", "b"), strict=True):
                if process.returncode != 0:
                    failures.append(f"pair {number}: {name} ended with {process.returncode}: {text[-1500:]}")
                    continue
                result = result_of(folder / name)
                expected = expected or result
                if differences := differences_of(expected, result):
                    failures.append(f"pair {number}: {name}: {differences}")
            failures += [f"pair {number}: left behind: {path}" for path in leftovers(folder)]
            shutil.rmtree(folder)
            say(f"{number + 1} pairs, {len(failures)} failures")
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    problems = torture(options.count, options.seed) + race(options.pairs)
    for text in problems:
        print(f"FAILED: {text}")
    print(f"{options.count} damages and {options.pairs} pairs of runs, {len(problems)} failures")
    sys.exit(1 if problems else 0)
