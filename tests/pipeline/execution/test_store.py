from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.execution.store import Store, code_sha256
from pipeline.models.digest import key_of, weights_sha256


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


def test_weights_sha256_changes_when_one_value_a_shape_or_a_name_changes() -> None:
    def linear(change: str) -> nn.Module:
        layer = nn.Linear(4, 2, bias=False)
        nn.init.ones_(layer.weight)
        if change == "value":
            with torch.no_grad():
                layer.weight[0, 0] += 1e-6
        if change == "shape":
            layer.weight = nn.Parameter(torch.ones(2, 4).reshape(4, 2))
        return nn.Sequential(layer) if change == "name" else layer

    hashes = [weights_sha256(linear(change)) for change in ("none", "none", "value", "shape", "name")]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4


def test_key_of_changes_when_any_input_changes() -> None:
    assert len({key_of(a=1, b=2), key_of(a=1, b=3), key_of(a=2, b=2), key_of(a=1)}) == 4


def test_code_sha256_changes_when_a_source_changes(tmp_path: Path) -> None:
    source = tmp_path / "stage.py"
    source.write_text("x = 1")
    before = code_sha256(source)
    source.write_text("x = 2")
    assert code_sha256(source) != before
