"""Some of the files that ``python -m tests.torture hostile`` gives to the command; all kinds, but not all of each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.hostile_files import HOSTILE


@pytest.mark.slow
def test_hostile_files_are_one_error_and_nothing_else() -> None:
    command = [sys.executable, "-m", "tests.torture", "hostile", "--every", "6"]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " files, 0 failures" in ended.stdout.splitlines()[-1]


def test_hostile_files_are_many_and_of_every_door() -> None:
    assert len({each.name for each in HOSTILE}) == len(HOSTILE) >= 60
    assert {each.door for each in HOSTILE} == {"checkpoint", "npz", "images", "recipe", "model", "samples"}
