"""The ``edgewright`` command: arguments and wiring only."""

from __future__ import annotations

import sys

from pipeline.cli.app import app
from pipeline.core import EdgewrightError


def main() -> None:
    """Entry point: a user's mistake is one message and exit code 2, never a traceback."""
    try:
        app()
    except EdgewrightError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
