"""A call in a process of its own: its result comes back, and whatever happens there is one error here."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.core import CheckpointError, EdgewrightError
from pipeline.core.bounded import ChildError, Reason, run_bounded
from tests.pipeline.core import bounded_calls as calls

ROOT = Path(__file__).parents[3]


def test_result_comes_back_as_numbers_text_and_arrays() -> None:
    value = run_bounded(calls.results, 2, names=["a", "b"]).value
    array = value.pop("array")
    assert array.dtype == np.int8
    np.testing.assert_array_equal(array, [[0, 2, 4], [6, 8, 10]])
    scalar = value.pop("scalar")
    assert (scalar.dtype, float(scalar)) == (np.float32, 1.5)
    assert value == {
        "none": None, "flag": True, "number": 3, "ratio": 0.5, "text": "ä\n", "names": ["a", "b"],
        "pair": [1, [2.0]], "infinity": float("inf"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("call", "reason", "problem"),
    [
        (calls.segmentation_fault, "signal", r"killed by signal 11 \(Segmentation fault\)"),
        (calls.abort, "signal", r"killed by signal 6 \(Aborted\)"),
        (calls.killed, "signal", r"killed by signal 9 \(Killed\); perhaps the system had no memory left"),
        (calls.exits, "exit", "ended with exit status 3, without a result"),
        (calls.system_exit, "exception", "SystemExit: no"),
        (calls.surprise, "exception", "KeyError: 'a'"),
        (calls.objects, "exception", "allow_pickle=False"),
        (calls.allocate_with_new, "memory", "needs more than 4 GiB of memory"),
    ],
)
def test_end_without_a_result_is_one_error_that_says_why(
    call: Callable[[], object], reason: Reason, problem: str
) -> None:
    with pytest.raises(ChildError, match=problem) as caught:
        run_bounded(call, where="m.onnx")
    assert caught.value.reason == reason
    assert caught.value.where == "m.onnx"


def test_error_that_a_user_can_mend_is_raised_here_again() -> None:
    with pytest.raises(CheckpointError) as caught:
        run_bounded(calls.users_mistake)
    assert (caught.value.problem, caught.value.where, caught.value.fix) == ("is damaged", "m.onnx", "write it again")


def test_call_is_stopped_with_what_it_started_when_its_time_is_over(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ChildError, match=r"took longer than 1\.5 s") as caught:
        run_bounded(calls.sleeps, tmp_path / "marker", seconds=1.5)
    assert time.monotonic() - started < 3
    assert caught.value.reason == "time"
    time.sleep(2.5)
    assert not (tmp_path / "marker").exists()


def test_endless_loop_is_stopped() -> None:
    with pytest.raises(ChildError, match="took longer than 1 s"):
        run_bounded(calls.endless_loop, seconds=1)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep a limit of the address space")
def test_memory_is_limited() -> None:
    assert run_bounded(calls.allocate, 1 << 25, memory_bytes=1 << 26).value == 1 << 25  # imports do not count
    with pytest.raises(ChildError, match=r"needs more than 0\.25 GiB of memory") as caught:
        run_bounded(calls.allocate, 1 << 29, memory_bytes=1 << 28)
    assert caught.value.reason == "memory"


def test_size_of_written_files_is_limited_and_core_dumps_are_off(tmp_path: Path) -> None:
    with pytest.raises(ChildError, match="File too large"):
        run_bounded(calls.write, tmp_path / "file", (1 << 28) + 1, memory_bytes=1 << 28)
    assert (tmp_path / "file").stat().st_size == 0
    value = run_bounded(calls.limits, memory_bytes=1 << 30).value
    assert value == {"RLIMIT_CORE": [0, 0], "RLIMIT_FSIZE": [1 << 30, 1 << 30]}


def test_output_is_captured_and_none_reaches_this_process(capfd: pytest.CaptureFixture[str]) -> None:
    finished = run_bounded(calls.talks)
    assert (finished.value, finished.stdout, finished.stderr) == (
        "done",
        "to stdout\n",
        "to stderr, from below Python\n",
    )
    assert finished.seconds > 0
    assert capfd.readouterr() == ("", "")


def test_flood_of_output_is_cut_at_its_beginning() -> None:
    finished = run_bounded(calls.floods)
    assert len(finished.stdout) == 1 << 16
    assert finished.stdout.endswith("x\nthe end")


def test_function_that_cannot_be_imported_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be imported by another process"):
        run_bounded(lambda: 1)


def test_child_imports_no_file_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "pickle", "pathlib", "resource"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "torch" not in run_bounded(calls.imported_modules).value


MAIN = """
from pipeline.core.bounded import run_bounded
from tests.pipeline.core.bounded_calls import talks

print("main runs")  # once: a child that imported this file would print it again
print(run_bounded(talks).value)
"""


def test_it_works_from_a_script_without_a_main_guard(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{MAIN}")
    ended = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=True)
    assert ended.stdout == "main runs\ndone\n"


def test_it_works_from_python_m_and_from_standard_input(tmp_path: Path) -> None:
    (tmp_path / "started.py").write_text(MAIN)
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    for arguments, text in ((["-m", "started"], ""), (["-"], MAIN)):  # a notebook's main module has no file either
        ended = subprocess.run(
            [sys.executable, *arguments], input=text, env=environment, capture_output=True, text=True, check=True
        )
        assert ended.stdout == "main runs\ndone\n"


WAITS = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from pipeline.core.bounded import run_bounded
from tests.pipeline.core.bounded_calls import writes_its_number

run_bounded(writes_its_number, Path(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the child in /proc")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_child_ends_with_its_parent(stop: signal.Signals, tmp_path: Path) -> None:
    number = tmp_path / "number"
    parent = subprocess.Popen([sys.executable, "-c", WAITS, number], stderr=subprocess.DEVNULL)
    _wait_until(number.exists)
    child = Path("/proc") / number.read_text()
    assert child.exists()
    parent.send_signal(stop)
    assert parent.wait(5) != 0
    _wait_until(lambda: not child.exists())


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_child_error_is_one_that_the_command_line_prints() -> None:
    assert issubclass(ChildError, EdgewrightError)
