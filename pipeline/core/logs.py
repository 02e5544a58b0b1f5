"""Our own log, and what other libraries print and log about themselves: kept from the terminal, and told to our log.

Errors are raised, so nothing that a user can act on is lost.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import IO, TextIO

OURS = (__package__.removesuffix(".core"), f"{__package__.removesuffix('pipeline.core')}targets")
"""The loggers above all of ours."""

STDERR = 2
MAX_CHARACTERS = 100_000
"""Of what is held back at once, the end goes to the log."""

logger = logging.getLogger(__name__)


class Held:
    """What was written to standard error while it was held back; filled in when `silenced` ends."""

    text = ""


class _Told(logging.Handler):
    """Tells our own log, at debug level, what another library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        logger.debug("%s: %s", record.name, record.getMessage())


class _Withheld(logging.Filter):
    """Tells our own log what is logged at one logger itself, and passes none of it on."""

    def filter(self, record: logging.LogRecord) -> bool:
        _Told().emit(record)
        return False


@contextmanager
def silenced(*loggers: str) -> Iterator[Held]:
    """Hold back what is written to standard error, also by C++ code, warnings, and what these loggers are told."""
    held = Held()
    with _quieted(loggers), warnings.catch_warnings(record=True) as warned, _redirected() as file:
        warnings.simplefilter("always")
        try:
            yield held
        finally:
            sys.stderr.flush()
            file.seek(0)
            held.text = file.read().decode(errors="replace")
            for warning in {str(each.message): each for each in warned}.values():
                logger.debug("%s: %s", warning.category.__name__, warning.message)
            for line in held.text[-MAX_CHARACTERS:].replace("\r", "\n").splitlines():
                if line.strip():
                    logger.debug("%s", line)


@contextmanager
def _quieted(names: Sequence[str]) -> Iterator[None]:
    """What is logged at these loggers and below them goes to our own log only; of the root, only at itself."""
    withheld, root = _Withheld(), logging.getLogger()
    loggers = [logging.getLogger(name) for name in names]
    before = [(each, each.propagate, each.handlers) for each in loggers if each is not root]
    for each, _, _ in before:
        each.propagate, each.handlers = False, [_Told()]
    if root in loggers:
        root.addFilter(withheld)
    try:
        yield
    finally:
        root.removeFilter(withheld)
        for each, propagate, handlers in before:
            each.propagate, each.handlers = propagate, handlers


@contextmanager
def _redirected() -> Iterator[IO[bytes]]:
    """Standard error, of Python and of C++, goes to a file."""
    stream, terminal = sys.stderr, os.dup(STDERR)
    stream.flush()
    with (
        tempfile.TemporaryFile() as file,
        open(os.dup(file.fileno()), "w", errors="replace", buffering=1) as text,  # noqa: PTH123  a descriptor
        redirect_stderr(text),
    ):
        os.dup2(file.fileno(), STDERR)
        try:
            yield file
        finally:
            stream.flush()
            os.dup2(terminal, STDERR)
            os.close(terminal)


class _Upwards(logging.Handler):
    """Passes on to the root logger what it would have got without us."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger().handle(record)


def _is_others(record: logging.LogRecord) -> bool:
    return not record.name.startswith(OURS)


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del file, line
    logger.debug("%s, line %d: %s: %s", filename, lineno, category.__name__, message)


@contextmanager
def logged_to(handler: logging.Handler) -> Iterator[None]:
    """Let a handler have all that our modules log, and the warnings of other libraries.

    Whoever has set up logging gets what they got before, and no debug lines that they did not ask for.
    """
    root = logging.getLogger()
    loggers = [logging.getLogger(name) for name in OURS]
    before = [(each, each.level, each.propagate) for each in loggers]
    upwards = [_Upwards(each.getEffectiveLevel()) for each in loggers]
    of_others = logging.Handler(logging.WARNING)
    of_others.addFilter(_is_others)
    of_others.emit = handler.handle  # type: ignore[method-assign,assignment]  # a handler for each would be a class
    for each, passed_on in zip(loggers, upwards, strict=True):
        each.setLevel(logging.DEBUG)
        each.propagate = False
        each.handlers += [handler, passed_on]
    root.addHandler(of_others)
    shown, warnings.showwarning = warnings.showwarning, _log_warning
    try:
        yield
    finally:
        warnings.showwarning = shown
        root.removeHandler(of_others)
        for (each, level, propagate), passed_on in zip(before, upwards, strict=True):
            each.setLevel(level)
            each.propagate = propagate
            each.removeHandler(handler)
            each.removeHandler(passed_on)
