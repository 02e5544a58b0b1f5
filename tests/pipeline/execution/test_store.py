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
    assert list(tmp_path.iterdir()) == []


def test_entry_keeps_the_first_result_when_two_processes_finish(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def compute(folder: Path) -> None:
        (folder / "value").write_text("late")
        (tmp_path / "key").mkdir()
        (tmp_path / "key" / "value").write_text("first")

    folder, found = store.entry("key", compute)
    assert found is False
    assert (folder / "value").read_text() == "first"
