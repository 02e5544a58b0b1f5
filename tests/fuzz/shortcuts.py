"""What lets a process examine networks faster, and changes no answer.

A network of a few operators spends its time in tracing, in the garbage collector and in new interpreters. For a
campaign over hundreds of them:

1. A file is verified in a fork of this process, not in a new interpreter that imports its runtime again. A crash there
   still costs that file alone.
2. What is imported is never searched for garbage, and the rest seldom: coremltools asks for a full search each time.
3. torch lists all its composite operators once, and not twice per namespace and decomposition; and it keeps the
   types that its annotations name instead of making them again. Its ONNX exporter parses its own library once.
"""

from __future__ import annotations

import gc
import os
import pickle
import resource
import signal
import tempfile
import typing
from collections.abc import Callable
from functools import cache
from typing import Any

from pipeline.core import EdgewrightError
from pipeline.core.bounded import ChildError, Finished

FORK_SECONDS = 60
"""CPU time of a fork; a hang there is stopped even where nobody waits for it any more."""


def take_shortcuts() -> None:
    """Apply all of them to this process, which has imported what it needs."""
    import torch
    from torch.onnx._internal.exporter import _registration

    from pipeline.stages.export import verification

    verification.run_bounded = run_forked  # type: ignore[assignment]
    torch._export.utils._materialize_cpp_cia_ops = cache(torch._export.utils._materialize_cpp_cia_ops)
    registry = _registration.ONNXRegistry
    registry.from_torchlib = staticmethod(cache(registry.from_torchlib))  # type: ignore[method-assign, assignment]
    torch._ops.Callable = typing.Callable  # type: ignore[attr-defined]  # typing's is cached, collections.abc's is not
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def run_forked(function: Callable[..., Any], *arguments: Any, where: str | None = None, **_: Any) -> Finished:
    """As `pipeline.core.bounded.run_bounded`, in a fork of this process.

    Raises:
        ChildError: The fork crashed, or raised an exception that is no `EdgewrightError`.
        EdgewrightError: It raised one.
    """
    with tempfile.TemporaryFile() as answer:
        child = os.fork()
        if child == 0:
            _answer(function, arguments, answer)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            happened = f"killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit status {code}"
            raise ChildError(happened, reason="signal" if code < 0 else "exit", where=where, stdout="", stderr="")
        answer.seek(0)
        kind, value = pickle.load(answer)  # from our own fork
    if kind == "refused":
        problem, place, fix = value
        raise EdgewrightError(problem, where=place, fix=fix)
    if kind == "failed":
        raise ChildError(value, reason="exception", where=where, stdout="", stderr="")
    return Finished(value, "", "", 0.0)


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...], answer: Any) -> None:
    """Call in the fork, leave what came of it in a file, and end."""
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (FORK_SECONDS, FORK_SECONDS))
        found: tuple[str, Any]
        try:
            found = "value", function(*arguments)
        except EdgewrightError as error:
            found = "refused", (error.problem, error.where, error.fix)
        except Exception as error:
            found = "failed", f"{type(error).__name__}: {error}"
        pickle.dump(found, answer)
        answer.flush()
        os._exit(0)
    finally:
        os._exit(1)
