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
