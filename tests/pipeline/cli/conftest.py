"""The command as a user gives it, in this process."""

from __future__ import annotations

import sys

import pytest

from pipeline.cli import main


def edgewright(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of ``edgewright`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["edgewright", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


ANNOUNCED = ": checking the model and the data\n"


def refusal(printed: str) -> str:
    """What is printed on standard error, without the line that says what is being checked."""
    first, separator, rest = printed.partition("\n")
    return rest if f"{first}{separator}".endswith(ANNOUNCED) else printed
