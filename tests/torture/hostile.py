"""Give the command files that attack whoever opens them: each is one error, and nothing else happens.

``python -m tests.torture hostile`` tries every file of `hostile_files` at its door: ``run`` for checkpoints, data and
recipes, ``predict`` and ``inspect`` for model files, ``predict`` for samples. The command has to end with one error
that names the file, in bounded time and memory. No marker may appear, and nothing else may be written.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.pipeline.cli.conftest import refusal
from tests.pipeline.conftest import make_project
from tests.torture.hostile_files import HOSTILE, Hostile

SECONDS = 60
MEMORY_BYTES = 2 << 30
"""Resident memory that a command may reach, with its libraries; a run may also ask for no more address space."""

LONGEST_ERROR = 4000


def torture(chosen: Sequence[Hostile], *, say: Any = print) -> list[str]:
    """What was wrong with how the command took these files."""
    import pipeline.execution.apply  # noqa: F401  # so that no fork has to import it

    failures: list[str] = []
    for number, hostile in enumerate(chosen, start=1):
        for arguments, problem in _tried(hostile):
            if problem:
                failures.append(f"{hostile.door}: {hostile.name}: edgewright {arguments[0]}: {problem}")
                say(f"FAILED: {failures[-1]}")
        if number % 10 == 0:
            say(f"{number} files, {len(failures)} failures")
    return failures


def _tried(hostile: Hostile) -> Iterator[tuple[list[str], str | None]]:
    """Each command that opens the file, and what was wrong with how it ended."""
    with tempfile.TemporaryDirectory(prefix="edgewright-hostile-") as scratch:
        folder = Path(scratch) / "project"
        folder.mkdir()
        for arguments in _prepared(hostile, folder):
            yield arguments, _problem(hostile, arguments, folder)
            shutil.rmtree(folder / "out", ignore_errors=True)


def _prepared(hostile: Hostile, folder: Path) -> list[list[str]]:
    """Write a project with the file in it, and say which commands open the file."""
    project = make_project(folder)
    project.recipe |= {"stages": [], "targets": []}
    path, marker = folder / hostile.file, folder / "marker"
    if hostile.door == "checkpoint":
        (folder / "model.safetensors").unlink()
        project.recipe["model"]["checkpoint"] = hostile.file
        if path.suffix == ".pt2":
            del project.recipe["model"]["factory"]
    elif hostile.door == "npz":
        path.unlink()
    elif hostile.door == "images":
        (folder / "images" / "class").mkdir(parents=True)
        path = folder / "images" / "class" / hostile.file
        project.recipe["data"]["evaluation"] = {"folder": "images"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(project.recipe))
    if hostile.door == "recipe":
        path.unlink()
    if hostile.door == "samples":
        _write_model(folder / "model.onnx")
    hostile.write(path, marker)
    if hostile.door == "model":
        np.savez(folder / "in.npz", x=np.ones((2, 4), np.float32))
        return [["predict", str(path), "-i", "in.npz", "-o", "out.npz"], ["inspect", str(path)]]
    if hostile.door == "samples":
        return [["predict", "model.onnx", "-i", hostile.file, "-o", "out.npz"]]
    return [["run", "recipe.yaml", "--out", "out"]]


def _write_model(path: Path) -> None:
    """A model that works."""
    from onnx import helper

    from tests.torture.hostile_files import save_onnx

    save_onnx(path, [helper.make_node("Neg", ["x"], ["y"])], [])


def _problem(hostile: Hostile, arguments: list[str], folder: Path) -> str | None:
    """What is wrong with how one command ended."""
    before = _listing(folder.parent)
    status, text, peak = _run(arguments, folder, limited=arguments[0] == "run")
    text = refusal(text)
    named = {"images": "0.", "npz": "train.npz"}.get(hostile.door, hostile.file)
    if (folder / "marker").exists():
        return "the marker is there: it ran"
    if status is None:
        return f"did not end within {SECONDS} s"
    if status != 2 or not text.startswith("error: ") or "Traceback" in text or len(text) > LONGEST_ERROR:
        return f"ended with {status}: {text[-600:]}"
    if named not in text:
        return f"does not name {named}: {text[:300]}"
    if peak > MEMORY_BYTES:
        return f"took {peak / 2**30:.1f} GiB"
    if new := _listing(folder.parent) - before:
        return f"left {sorted(new)[:3]}"
    return None


def _listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


def _run(arguments: list[str], folder: Path, *, limited: bool) -> tuple[int | None, str, int]:
    """Exit status (None where it had to be stopped), stderr and peak bytes of the command, in a fork."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as stderr:
        number = os.fork()
        if number == 0:
            _in_child(arguments, folder, stderr.fileno(), limited)
        ended = 0
        while not ended and time.monotonic() < started + SECONDS:
            ended, status, usage = os.wait4(number, os.WNOHANG)
            time.sleep(0.01)
        if not ended:
            os.killpg(number, signal.SIGKILL)
            _, status, usage = os.wait4(number, 0)
        stderr.seek(0)
        text = stderr.read().decode(errors="replace")
    code = os.waitstatus_to_exitcode(status) if ended else None
    return code, text, usage.ru_maxrss << 10


def _in_child(arguments: list[str], folder: Path, stderr: int, limited: bool) -> None:
    """The command, as in a process of its own."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(stderr, 2)
    os.chdir(folder)
    if limited:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_BYTES, mapped + MEMORY_BYTES))
    code: Any = 1
    try:
        from pipeline.cli import main

        sys.argv = ["edgewright", *arguments]
        main()
    except SystemExit as exit_:
        code = exit_.code
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.torture.hostile", description=__doc__)
    parser.add_argument("--only", default="", help="files whose door or name holds this text")
    parser.add_argument("--every", type=int, default=1, help="each n-th file")
    options = parser.parse_args()
    files = [each for each in HOSTILE if options.only in f"{each.door}: {each.name}"][:: options.every]
    problems = torture(files)
    print(f"{len(files)} files, {len(problems)} failures")
    sys.exit(1 if problems else 0)
