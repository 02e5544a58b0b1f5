"""Let the disk refuse a run's writes at many points, then free space and run again.

``python -m tests.torture.disk --count 40`` gives each run another limit on the size of its files, from nothing to more
than it needs, and fills a small file system where mounting one is allowed. A run that cannot write ends with one error
that names the path, not with a traceback or an abort. It leaves what was there, and the same command goes on later.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.torture.runs import differences_of, finish, leftovers, result_of, write_project

LARGEST_BYTES = 600_000
"""No file of the small run is larger."""


def torture(count: int, *, small_disks: bool = False, say: Any = print) -> tuple[int, list[str]]:
    """How many runs met a limit, and what was wrong."""
    failures: list[str] = []
    refused = 0
    with tempfile.TemporaryDirectory(prefix="edgewright-disk-") as scratch:
        base = Path(scratch) / "quadrants"
        base.mkdir()
        write_project(base)
        undisturbed = shutil.copytree(base, Path(scratch) / "undisturbed")
        status, text = finish(undisturbed)
        assert status == 0, text
        expected = result_of(undisturbed / "out")
        for number in range(count):
            limit = round(LARGEST_BYTES ** (number / max(count - 1, 1)))
            folder = shutil.copytree(base, Path(scratch) / f"run{number}")
            status, text = finish(folder, file_bytes=limit)
            problem = _problem(status, text)
            refused += status != 0
            if problem is None:
                status, text = finish(folder)
                problem = None if status == 0 else f"the next run failed: {text[-1000:]}"
            if problem is None:
                problem = differences_of(expected, result_of(folder / "out")) or (", ".join(leftovers(folder)) or None)
            if problem is not None:
                failures.append(f"files of at most {limit} bytes: {problem}")
            shutil.rmtree(folder)
            say(f"{number + 1} limits, {refused} refused, {len(failures)} failures")
        if small_disks and os.geteuid() == 0:
            failures += _on_small_disks(base, Path(scratch), say)
    return refused, failures


def _problem(status: int, text: str) -> str | None:
    """What is wrong with how a run ended."""
    if status == 0:
        return None
    if status < 0:
        return f"killed by signal {-status}: {text[-500:]}"
    if "Traceback" in text:
        return f"a traceback: {text[-1500:]}"
    if status != 2 or ("error: " not in text and text):
        return f"exit status {status} without an error message: {text[-500:]}"
    return None


def _on_small_disks(base: Path, scratch: Path, say: Any) -> list[str]:
    """The same on file systems of 100 kB to 3 MB; nothing where none may be mounted."""
    failures = []
    for kilobytes in (100, 300, 700, 1500, 3000):
        with _mounted(scratch / f"disk{kilobytes}", kilobytes) as disk:
            if disk is None:
                say("no small file system may be mounted here")
                return failures
            folder = shutil.copytree(base, scratch / f"small{kilobytes}")
            (folder / "out").symlink_to(disk / "out")
            (disk / "out").mkdir()
            status, text = finish(folder)
            if problem := _problem(status, text):
                failures.append(f"a disk of {kilobytes} kB: {problem}")
            say(f"a disk of {kilobytes} kB: exit status {status}: {text.splitlines()[-2:]}")
    return failures


@contextmanager
def _mounted(folder: Path, kilobytes: int) -> Iterator[Path | None]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40)
    found, problems = torture(parser.parse_args().count, small_disks=True)
    for text in problems:
        print(f"FAILED: {text}")
    print(f"{found} runs were refused their writes, {len(problems)} failures")
    sys.exit(1 if problems else 0)
