"""A call in a process of its own, with limits: what crashes there does not take the user's process along.

Native libraries crash, hang or ask for all memory on a damaged model file, and no ``except`` catches that.

    finished = run_bounded(inspect_model, path, seconds=60, where=str(path))

The child is a new interpreter that imports the function by its name, so nothing of the caller's main module runs
again: it works from scripts, ``python -m``, notebooks and test workers alike. Results come back as JSON values and
NumPy arrays, never as a pickle, because the child may have read a hostile file.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from pipeline.core import EdgewrightError
from pipeline.core import bounded_child as child
from pipeline.core.logs import OURS

logger = logging.getLogger(__name__)

MAX_OUTPUT_BYTES = 1 << 16
"""How much of the end of stdout and of stderr is kept."""

Reason = Literal["signal", "memory", "time", "exit", "exception"]


class ChildError(EdgewrightError):
    """A bounded call ended without a result.

    Attributes:
        reason: What ended it: a signal (a crash), the memory limit, the time limit, an exit, or an exception of a
            class that is no `EdgewrightError`.
        stdout: The end of what it wrote; ``stderr`` likewise.
    """

    def __init__(self, problem: str, *, reason: Reason, where: str | None, stdout: str, stderr: str) -> None:
        super().__init__(problem, where=where)
        self.reason, self.stdout, self.stderr = reason, stdout, stderr


@dataclass(frozen=True, slots=True)
class Finished:
    """A call that came to its end.

    Attributes:
        value: What it returned. Tuples have become lists, and keys of dictionaries text.
        stdout: The end of what it wrote; ``stderr`` likewise.
        seconds: How long it took, with the start of the process.
    """

    value: Any
    stdout: str
    stderr: str
    seconds: float


def run_bounded(
    function: Callable[..., Any],
    *arguments: Any,
    seconds: float = 60,
    memory_bytes: int = 4 << 30,
    where: str | None = None,
    **keywords: Any,
) -> Finished:
    """Call a function of an importable module in a child process.

    Args:
        function: It returns numbers, text, None, NumPy arrays, and lists and dictionaries of them.
        arguments: What can be pickled.
        seconds: Wall time, with the start of the process.
        memory_bytes: Address space that the call may take beyond what its imports took, and the size of a file that it
            may write.
        where: The file that errors name.

    Raises:
        ChildError: It was killed by a signal, ran out of memory or time, exited, or raised an exception.
        EdgewrightError: It raised one; it is raised here again.
        ValueError: The function has no module to import it from.

    >>> import math
    >>> run_bounded(math.hypot, 3, 4).value
    5.0
    """
    if function.__module__ == "__main__" or "<" in function.__qualname__:
        raise ValueError(f"{function.__qualname__} cannot be imported by another process")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edgewright-") as folder, _files(2) as (out, err):
        call = {
            "path": [str(Path(entry).absolute()) for entry in sys.path],
            "module": function.__module__,
            "name": function.__qualname__,
            "arguments": pickle.dumps((arguments, keywords)),
            "folder": folder,
            "seconds": seconds,
            "memory_bytes": memory_bytes,
            "loggers": OURS if logger.isEnabledFor(logging.DEBUG) else (),
        }
        status = _run(pickle.dumps(call), seconds, out, err)
        result = Path(folder) / "result.json"
        outcome = json.loads(result.read_text()) if status == 0 and result.is_file() else None
        stdout, stderr = _end(out), _end(err)
        for line in f"{stdout}\n{stderr}".splitlines():
            if line.strip():
                logger.debug("%s in its own process: %s", function.__qualname__, line)
        if outcome is not None and "value" in outcome:
            return Finished(_decode(outcome["value"], Path(folder)), stdout, stderr, time.monotonic() - started)
    if outcome is not None and "error" in outcome and outcome["error"]["problem"] is not None:
        raise _same_error(outcome["error"])
    problem, reason = _what_happened(status, outcome, stderr, seconds, memory_bytes)
    raise ChildError(problem, reason=reason, where=where, stdout=stdout, stderr=stderr)


@contextmanager
def _files(count: int) -> Iterator[list[IO[bytes]]]:
    files: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(count)]  # noqa: SIM115  closed below
    try:
        yield files
    finally:
        for file in files:
            file.close()


def _run(call: bytes, seconds: float, stdout: IO[bytes], stderr: IO[bytes]) -> int | None:
    """The exit status of the child, negative for a signal; None where it had to be stopped for its time."""
    # -I: no file in the working folder, and no variable of the environment, changes what the child imports
    process = subprocess.Popen(
        [sys.executable, "-I", child.__file__],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )
    try:
        process.communicate(call, timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:  # its time is over, or Ctrl-C; the group holds what the child itself started
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode


def _end(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - MAX_OUTPUT_BYTES))
    return file.read().decode(errors="replace")


def _decode(value: Any, folder: Path) -> Any:
    match value:
        case {"dict": items}:
            return {key: _decode(item, folder) for key, item in items}
        case {"list": items}:
            return [_decode(item, folder) for item in items]
        case {"array": str() as name}:
            import numpy as np

            return np.load(folder / Path(name).name, allow_pickle=False)
    return value


def _same_error(error: dict[str, Any]) -> EdgewrightError:
    """The `EdgewrightError` that the function raised; of its class, where this process knows it."""
    kinds = {kind.__name__: kind for kind in _subclasses(EdgewrightError) if kind is not ChildError}
    kind = kinds.get(error["class"], EdgewrightError)
    return kind(error["problem"], where=error["where"], fix=error["fix"])


def _subclasses(kind: type[EdgewrightError]) -> Iterator[type[EdgewrightError]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _what_happened(
    status: int | None, outcome: dict[str, Any] | None, stderr: str, seconds: float, memory_bytes: int
) -> tuple[str, Reason]:
    if status is None:
        return f"took longer than {seconds:g} s", "time"
    if (outcome is not None and "memory" in outcome) or "std::bad_alloc" in stderr:
        return f"needs more than {memory_bytes / 2**30:.3g} GiB of memory", "memory"
    if outcome is not None:
        error = outcome["error"]
        return f"{error['class']}: {error['text']}", "exception"
    if status < 0:
        name = signal.strsignal(-status) or "unknown"
        hint = "; perhaps the system had no memory left" if -status == signal.SIGKILL else ""
        return f"killed by signal {-status} ({name}){hint}", "signal"
    return f"ended with exit status {status}, without a result", "exit"
