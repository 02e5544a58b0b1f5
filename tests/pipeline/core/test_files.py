from pathlib import Path

import pytest

from pipeline.core import OutputError
from pipeline.core.files import atomic_write, write_text


class InterruptedWriteError(Exception):
    """Stands for anything that can go wrong while a file is written."""


def content(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_atomic_write_shows_the_old_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    with atomic_write(path) as staged:
        staged.write_text("ne")
        assert path.read_text() == "old"
        staged.write_text("new")
    assert content(tmp_path) == {"report.json": "new"}
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_atomic_write_leaves_what_was_there_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_text("old")

    def write_half() -> None:
        with atomic_write(path) as staged:
            staged.write_text("half")
            raise InterruptedWriteError

    with pytest.raises(InterruptedWriteError):
        write_half()
    assert content(tmp_path) == {"model.bin": "old"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.bin"]


def test_atomic_write_replaces_a_whole_folder_when_there_is_one_already(tmp_path: Path) -> None:
    path = tmp_path / "model.mlpackage"
    path.mkdir()
    (path / "of_old_only").write_text("old")
    with atomic_write(path) as staged:
        staged.mkdir()
        (staged / "weights").write_text("new")
        assert content(path) == {"of_old_only": "old"}
    assert content(tmp_path) == {"model.mlpackage/weights": "new"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.mlpackage"]


def test_atomic_write_puts_the_old_folder_back_when_the_new_one_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.mlpackage"
    path.mkdir()
    (path / "weights").write_text("old")

    def refuse(_self: Path, _target: Path) -> Path:
        raise PermissionError

    def write_new() -> None:
        with atomic_write(path) as staged:
            staged.mkdir()
            (staged / "weights").write_text("new")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError):
        write_new()
    assert content(tmp_path) == {"model.mlpackage/weights": "old"}


def test_atomic_write_moves_files_beside_the_first_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        order.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    with atomic_write(tmp_path / "model.onnx") as staged:
        staged.write_text("graph")
        staged.with_name("model.onnx.data").write_text("weights")
    assert order == ["model.onnx.data", "model.onnx"]
    assert content(tmp_path) == {"model.onnx": "graph", "model.onnx.data": "weights"}


def test_atomic_write_names_the_file_when_the_folder_is_missing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"), atomic_write(tmp_path / "missing" / "file"):
        pass


def test_write_text_keeps_line_ends_and_other_scripts(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "a\r\nb\n…")
    assert (tmp_path / "text").read_bytes() == b"a\r\nb\n\xe2\x80\xa6"
