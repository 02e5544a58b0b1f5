"""What a command says, and to whom: a person at a terminal, or a program that reads JSON.

The result of a command is on standard output; everything else, such as progress, is on standard error.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Annotated, Any

import typer

from pipeline.core.logs import logged_to
from pipeline.progress import console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for programs, and all else to stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also print what run.log gets: what each pass does.")]


def say(text: str, document: Any, *, as_json: bool) -> None:
    """Print a result: its text for a person, or its document for a program."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False) if as_json else text)


@contextmanager
def talking(*, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """For the duration of a command's work: how much it says, and that only its result is on standard output."""
    console.quiet = quiet
    handler = _Console(logging.DEBUG)
    with (
        redirect_stdout(sys.stderr) if as_json else nullcontext(),
        logged_to(handler) if verbose else nullcontext(),
    ):
        try:
            yield
        finally:
            console.quiet = False


class _Console(logging.Handler):
    """Prints log records among the bars and lines of progress."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(f"{record.name}: {record.getMessage()}", markup=False, soft_wrap=True, style="dim")
