"""Working with one deployed file, without a recipe: run it, or see where its operators run.

A file may come from anywhere, and native code reads it. So a file is only ever opened in a bounded process of its own:
whatever it does there, the user gets arrays, or one error that names the file, the cause and what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

import targets
from pipeline.core import EdgewrightError, OutputError, TargetError
from pipeline.core.arrays import Array
from pipeline.core.bounded import ChildError, Reason, run_bounded
from pipeline.data.archive import stored_bytes, write_archive
from pipeline.execution.samples import as_text, read_inputs, run_samples
from pipeline.machine.processor import all_cores
from pipeline.target import Lowered, Placement, Target, files_of

TARGET_OF = {".onnx": "onnx", ".mlpackage": "coreml", ".tflite": "tflite"}
SECONDS = 120.0
MEMORY_BYTES = 4 << 30
"""What a small file may take, beside the libraries."""

THREAD_BYTES = 128 << 20
"""Address space of one thread: its stack, and the C library's own store of memory for it."""

COPIES = 4
"""How often the weights and the samples may be in memory at once: read, rearranged, computed with, and joined."""

MAX_TEXT = 400
"""Characters of another library's error that are shown; it may quote the whole file."""

WHAT_TO_DO: dict[Reason, str] = {
    "signal": "the file is damaged, or its runtime has a bug: write the file again, or install another version of it",
    "exit": "the file is damaged, or its runtime has a bug: write the file again, or install another version of it",
    "exception": "the file is damaged, or of a kind that is not known here: write it again",
    "memory": "give fewer samples or, if the file is trusted, more memory with --memory",
    "time": "give fewer samples or, if the file is trusted, more time with --seconds",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file may use before it is stopped.

    Attributes:
        memory_bytes: Beside the libraries; None for an amount that fits the sizes of the file and the samples.
    """

    seconds: float = SECONDS
    memory_bytes: int | None = None


def limits(seconds: float | None, memory_gib: float | None) -> Limits:
    """Limits as the command takes them; None leaves the usual ones."""
    return Limits(
        seconds=SECONDS if seconds is None else seconds,
        memory_bytes=None if memory_gib is None else round(memory_gib * 2**30),
    )


def target_of(path: Path) -> Target:
    """The target that a file belongs to, by its suffix.

    Raises:
        TargetError: There is no such file, its suffix belongs to no target, or the target's runtime is not installed.
    """
    if path.suffix not in TARGET_OF:
        raise TargetError(
            f"suffix {path.suffix!r} belongs to no target", where=str(path), fix=f"give one of {', '.join(TARGET_OF)}"
        )
    target = targets.get(TARGET_OF[path.suffix])
    if extra := target.missing_package():
        raise TargetError(f"target {target.name!r} is not installed", where=str(path), fix=f"pip install '{extra}'")
    if reason := target.cannot_run():
        raise TargetError(reason, where=str(path))
    if not path.exists():
        raise TargetError("no such file", where=str(path))
    if not path.is_file() and not path.is_dir():
        raise TargetError("is no regular file", where=str(path))  # a pipe would be waited for
    return target


def predict(path: Path, inputs: Path, outputs: Path, *, limits: Limits = Limits()) -> dict[str, Array]:
    """Run a file in its own runtime: arrays ``(N, …)`` by input name from one npz to another by output name.

    Returns:
        What was written. Outputs whose names cannot stand in an archive are called by their position: ``output_0``.

    Raises:
        DataError: An array is missing, or does not fit the input of its name.
        OutputError: ``outputs`` cannot be written.
        TargetError: The file cannot be read or run, or its runtime is not here.
    """
    target_of(path)
    if outputs.is_dir() or not outputs.parent.is_dir():
        problem = "is a folder" if outputs.is_dir() else "its folder does not exist"
        raise OutputError(problem, where=str(outputs), fix="give the path of a file to write")
    named = _call(run_file, path, inputs, limits=limits)
    return write_archive(outputs, [(name, array) for name, array in named])


def inspect(path: Path, *, limits: Limits = Limits()) -> Placement:
    """Where the operators of a file run.

    Raises:
        TargetError: The file cannot be read, or nothing here can tell.
    """
    target_of(path)
    found = _call(placement_of, path, limits=limits)
    if found is None:
        raise TargetError("nothing on this machine knows where its operators run", where=str(path))
    return Placement.model_validate_json(found)


def run_file(path: Path, inputs: Path) -> list[tuple[str, Array]]:
    """Outputs by name, for a bounded process."""
    opened = target_of(path).open_to_run(path, threads=all_cores())
    outputs = run_samples(opened, read_inputs(inputs, opened.inputs), path)
    return list(zip(opened.outputs, map(as_text, outputs), strict=True))


def placement_of(path: Path) -> str | None:
    """A `Placement` as JSON, for a bounded process."""
    found = target_of(path).placement(Lowered(path=path, variant="fp32", inputs=(), outputs=()))
    return None if found is None else found.model_dump_json()


def _call(function: Callable[..., Any], path: Path, *arguments: Path, limits: Limits) -> Any:
    """What a function of a file returns, in a bounded process."""
    memory = limits.memory_bytes or _memory_for(path, *arguments)
    try:
        call = run_bounded(function, path, *arguments, seconds=limits.seconds, memory_bytes=memory, where=str(path))
    except ChildError as error:
        raise TargetError(_short(error.problem), where=str(path), fix=WHAT_TO_DO[error.reason]) from None
    except EdgewrightError as error:
        raise type(error)(_short(error.problem), where=error.where or str(path), fix=error.fix) from None
    return call.value


def _memory_for(path: Path, *archives: Path) -> int:
    """Bytes that running a file on these samples may take: by their sizes, but no more than the machine has free."""
    read = sum(file.stat().st_size for file in files_of(path)) if path.exists() else 0
    read += sum(map(stored_bytes, archives))
    needed = MEMORY_BYTES + all_cores() * THREAD_BYTES + COPIES * read
    return min(needed, max(MEMORY_BYTES, psutil.virtual_memory().available))


def _short(text: str) -> str:
    r"""An error's text on one line that can be read.

    >>> _short("cannot load it:\n  no magic")
    'cannot load it: no magic'
    """
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT else f"{line[:MAX_TEXT]} …"
