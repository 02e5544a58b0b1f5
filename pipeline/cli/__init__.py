"""The ``edgewright`` command: arguments and wiring only."""

from __future__ import annotations

import sys

from pipeline.cli.app import app
from pipeline.cli.supervisor import supervised
from pipeline.core import EdgewrightError
from pipeline.core.printing import printable

LONG = frozenset({"run", "demo", "search"})
"""Commands that work for minutes, and go on where they were stopped."""


def command() -> None:
    """Entry point of the command."""
    if LONG & set(sys.argv[1:2]):
        supervised(main)
    else:
        main()


def main() -> None:
    """Parse the arguments and do what they say: a user's mistake is one message and exit code 2, never a traceback."""
    try:
        app()
    except EdgewrightError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
