"""A long command in a process of its own, beside one that always answers: Ctrl-C stops it at once.

Converters and runtimes spend seconds in native code, in which Python cannot handle a signal, and a crash there would
end without a word. So the command forks before anything heavy is imported: the child does the work, and the parent
waits, passes signals on, and says what happened and how to go on. Stopping at any moment is safe, because files get
their names only when they are complete.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

PATIENCE_S = 1.0
"""How long the work may take to end by itself when it is asked to."""
GO_ON = "the same command goes on from the last finished stage"
_KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux' prctl


def supervised(work: Callable[[], None]) -> None:
    """Run ``work`` in a child process where the system can fork, and exit with its status.

    A signal that asks to stop gives status 128 + its number, as in a shell.
    """
    if not hasattr(os, "fork"):
        work()
        return
    child = os.fork()
    if child == 0:
        _die_with_parent()
        work()
        return
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    status = _wait(child, asked)
    if asked:
        print(f"\nstopped; {GO_ON}", file=sys.stderr)
        sys.exit(128 + asked[0])
    if status < 0:
        name = signal.strsignal(-status) or "unknown"
        hint = "; perhaps there was not enough memory" if -status == signal.SIGKILL else ""
        print(f"error: the process was ended by signal {-status} ({name}){hint}\n  fix: {GO_ON}", file=sys.stderr)
        sys.exit(1)
    sys.exit(status)


def _wait(child: int, asked: list[int]) -> int:
    """The exit status of the child, negative for a signal; once the parent is asked to stop, the child has to."""
    until = None
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if asked and until is None:
            os.kill(child, asked[0])  # the terminal has sent it to both; a program may have sent it to this one alone
            until = time.monotonic() + PATIENCE_S
        if until is not None and (time.monotonic() > until or len(asked) > 1):
            os.kill(child, signal.SIGKILL)
            until = float("inf")
        time.sleep(0.02)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_KILL_WITH_PARENT, signal.SIGKILL)
