"""The program that `pipeline.core.bounded` starts: it takes one call from stdin, runs it, and writes what came of it.

It is run as a file, so that it starts before any package is imported, with the standard library alone.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import pickle
import sys
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

_KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux' prctl
_SIGKILL = 9


def main() -> None:
    """Run the call. Its result, or the error that it raised, is in ``result.json`` of the folder that it names."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_KILL_WITH_PARENT, _SIGKILL)
    call = pickle.load(sys.stdin.buffer)
    sys.path[:] = call["path"]
    folder = Path(call["folder"])
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_CPU", int(call["seconds"]) * (os.cpu_count() or 1) + 1)
    _limit("RLIMIT_FSIZE", call["memory_bytes"])
    _log(call["loggers"])
    try:
        function = attrgetter(call["name"])(importlib.import_module(call["module"]))
        arguments, keywords = pickle.loads(call["arguments"])
        _limit("RLIMIT_AS", _mapped_bytes() + call["memory_bytes"])  # the imported libraries do not count
        outcome = {"value": _encode(function(*arguments, **keywords), folder)}
    except MemoryError:
        outcome = {"memory": True}
    except BaseException as error:
        outcome = {"error": _described(error)}
    partial = folder / "result.partial"
    partial.write_text(json.dumps(outcome))
    partial.rename(folder / "result.json")


def _log(loggers: Sequence[str]) -> None:
    """Write what these loggers are told to stderr, which the caller reads."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    for name in loggers:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.DEBUG)


def _limit(name: str, value: int) -> None:
    """Lower a limit of this process, where the system has it."""
    with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        kind = getattr(resource, name)
        _, most = resource.getrlimit(kind)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))


def _mapped_bytes() -> int:
    """Address space in use; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _encode(value: Any, folder: Path) -> Any:
    """JSON values; an array becomes a file, and a reference to it."""
    if isinstance(value, dict):
        return {"dict": [[str(key), _encode(item, folder)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_encode(item, folder) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    import numpy as np

    array = np.asarray(value)
    name = f"{len(list(folder.iterdir()))}.npy"
    np.save(folder / name, array, allow_pickle=False)
    return {"array": name}


def _described(error: BaseException) -> dict[str, str | None]:
    return {
        "class": type(error).__name__,
        "text": str(error).strip(),
        **{name: getattr(error, name, None) for name in ("problem", "where", "fix")},
    }


if __name__ == "__main__":
    main()
