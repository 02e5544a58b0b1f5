"""The ``edgewright`` command: arguments and wiring only."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer

from pipeline.cli.app import app
from pipeline.cli.supervisor import supervised
from pipeline.core import EdgewrightError
from pipeline.core.packages import broken_torchvision
from pipeline.core.printing import printable

LONG = frozenset({"run", "demo", "search"})
"""Commands that work for minutes, and go on where they were stopped."""

UsageError: Any = typer.BadParameter.__base__
"""Of click, which newer versions of typer bring along under another name."""


def command() -> None:
    """Entry point of the command."""
    if LONG & set(sys.argv[1:2]):
        supervised(main)
    else:
        main()


def main() -> None:
    """Parse the arguments and do what they say: a user's mistake is one message and exit code 2, never a traceback."""
    try:
        code = app(prog_name="edgewright", standalone_mode=False)
    except EdgewrightError as error:
        code = _refused(str(error), error)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            code = 2
        else:
            command_path = "edgewright" if error.ctx is None else error.ctx.command_path
            code = _refused(f"{error.format_message()}\n  fix: see '{command_path} --help'")
    except Exception as error:
        if (refusal := broken_torchvision(error)) is None:
            raise
        code = _refused(str(refusal))
    sys.exit(code or 0)


def _refused(message: str, error: EdgewrightError | None = None) -> int:
    """Print a mistake for a person and, where JSON is asked for, as the command's one document."""
    print(f"error: {printable(message)}", file=sys.stderr)
    if "--json" in sys.argv:
        parts = (
            {"problem": message}
            if error is None
            else {"problem": error.problem, "where": error.where, "fix": error.fix}
        )
        print(json.dumps({"error": parts}, indent=2))
    return 2
