from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.execution.store import Store


def test_entry_computes_once_when_the_key_is_the_same(tmp_path: Path) -> None:
    store, calls = Store(tmp_path / "store"), []

    def compute(folder: Path) -> None:
        calls.append(folder)
        (folder / "value").write_text("42")

    first, found_first = store.entry("key", compute)
    second, found_second = store.entry("key", compute)
    assert (found_first, found_second, len(calls)) == (False, True, 1)
    assert first == second
    assert (second / "value").read_text() == "42"


def test_entry_leaves_nothing_when_computing_fails(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half").write_text("…")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        store.entry("key", fail)
    assert [entry.name for entry in tmp_path.iterdir()] == [".lock-key"]


def test_entry_keeps_the_first_result_when_two_processes_finish(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def compute(folder: Path) -> None:
        (folder / "value").write_text("late")
        (tmp_path / "key").mkdir()
        (tmp_path / "key" / "value").write_text("first")

    folder, found = store.entry("key", compute)
    assert found is False
    assert (folder / "value").read_text() == "first"


def write_two(folder: Path) -> None:
    (folder / "weights").write_bytes(bytes(range(100)))
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_text("graph")


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "weights").write_bytes(bytes(99)),
        lambda entry: (entry / "onnx" / "model.onnx").unlink(),
        lambda entry: (entry / "more").touch(),
        lambda entry: (entry / "contents.json").unlink(),
        lambda entry: (entry / "contents.json").write_text("{"),
        lambda entry: (entry / "contents.json").write_text("{}"),
        lambda entry: shutil.rmtree(entry / "onnx"),
        lambda entry: [file.unlink() for file in entry.rglob("*") if file.is_file()],
    ],
    ids=["changed", "missing", "added", "no hashes", "half the hashes", "no hash", "folder gone", "empty"],
)
def test_entry_is_set_aside_and_computed_again_when_it_was_damaged(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    store = Store(tmp_path)
    entry, _ = store.entry("key", write_two)
    damage(entry)
    again, found = store.entry("key", write_two)
    assert (again, found) == (entry, False)
    assert (entry / "weights").read_bytes() == bytes(range(100))
    assert (tmp_path / ".damaged-key-1").is_dir()
    assert store.entry("key", write_two) == (entry, True)


def test_second_process_waits_and_takes_the_result_when_two_compute_the_same(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom pipeline.execution.store import Store\n"
        "def compute(folder):\n    time.sleep(0.5)\n    (folder / sys.argv[2]).touch()\n"
        "print(Store(Path(sys.argv[1])).entry('key', compute)[1])\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "store")]
    runs = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "ab"]
    assert sorted(run.communicate()[0].strip() for run in runs) == ["False", "True"]
    (entry,) = (path for path in (tmp_path / "store").iterdir() if path.is_dir())
    assert len([file for file in entry.iterdir() if file.name in "ab"]) == 1
