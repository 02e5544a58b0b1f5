from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import os, signal, sys, time
from pipeline.cli.supervisor import supervised

def work():
    print(os.getpid(), flush=True)
    {body}

supervised(work)
"""
DEAF = "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


def start(body: str) -> tuple[subprocess.Popen[str], int]:
    """A supervised process that has begun its work, and the worker's process id."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.mark.parametrize(("body", "status"), [("pass", 0), ("sys.exit(2)", 2), ("1 / 0", 1)])
def test_exit_status_is_that_of_the_work(body: str, status: int) -> None:
    process, _ = start(body)
    process.communicate()
    assert process.returncode == status


@pytest.mark.parametrize("everyone", [True, False], ids=["as a terminal does", "to the parent alone"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_work_that_hears_no_signal_is_stopped_at_once(number: signal.Signals, everyone: bool) -> None:
    process, worker = start(DEAF)
    time.sleep(0.2)
    started = time.monotonic()
    (os.killpg if everyone else os.kill)(process.pid, number)
    _, text = process.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert process.returncode == 128 + number
    assert "the same command goes on" in text
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_crash_of_the_work_is_said_and_not_passed_on() -> None:
    process, _ = start("os.abort()")
    _, text = process.communicate()
    assert process.returncode == 1
    assert "ended by signal 6" in text


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_work_ends_when_its_parent_is_killed() -> None:
    process, worker = start("time.sleep(60)")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and "zombie" not in Path(f"/proc/{worker}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
