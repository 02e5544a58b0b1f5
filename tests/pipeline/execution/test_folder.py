from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.core import OutputError
from pipeline.execution.apply import run
from pipeline.execution.folder import claimed, require_space
from pipeline.recipe import parse_recipe
from tests.pipeline.conftest import Project


def test_claimed_folder_may_be_written_again_when_a_run_made_its_entries(tmp_path: Path) -> None:
    for _ in range(2):
        with claimed(tmp_path / "out", ["onnx", "report.json"]):
            (tmp_path / "out" / "onnx").mkdir(exist_ok=True)
            (tmp_path / "out" / "report.json").touch()
    with claimed(tmp_path / "out", ["onnx", "tflite"]):  # another target: nothing of that name is there
        pass


@pytest.mark.parametrize("kind", ["folder", "file", "link", "dangling link"])
def test_claimed_refuses_and_keeps_what_no_run_has_written(tmp_path: Path, kind: str) -> None:
    elsewhere, entry = tmp_path / "elsewhere", tmp_path / "out" / "onnx"
    entry.parent.mkdir()
    if kind == "folder":
        entry.mkdir()
        (entry / "thesis.txt").write_text("years of work")
    elif kind == "file":
        entry.write_text("years of work")
    else:
        if kind == "link":
            elsewhere.mkdir()
        entry.symlink_to(elsewhere)
    with pytest.raises(OutputError, match="stays as it is"), claimed(tmp_path / "out", ["onnx"]):
        pytest.fail("it was claimed")
    if kind == "folder":
        assert (entry / "thesis.txt").read_text() == "years of work"
    assert os.path.lexists(entry)


def test_claimed_refuses_a_link_in_place_of_what_a_run_has_written(tmp_path: Path) -> None:
    with claimed(tmp_path, ["onnx"]):
        (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx").rename(tmp_path / "moved")
    (tmp_path / "onnx").symlink_to(tmp_path / "moved")
    with pytest.raises(OutputError, match="is a link"), claimed(tmp_path, ["onnx"]):
        pass


def test_claimed_refuses_a_second_run_while_the_first_is_writing(tmp_path: Path) -> None:
    with claimed(tmp_path, ["onnx"]), pytest.raises(OutputError, match="another run"), claimed(tmp_path, ["onnx"]):
        pass
    with claimed(tmp_path, ["onnx"]):
        pass


@pytest.mark.parametrize("out", ["file", "file/below", "dangling", "n" * 300, "/proc/edgewright", "/dev/null"])
def test_run_names_the_folder_and_computes_nothing_when_it_cannot_be_written_to(
    project: Project, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (project.folder / "file").touch()
    (project.folder / "dangling").symlink_to(project.folder / "nowhere" / "deeper")

    def refuse(*_: object) -> None:
        raise AssertionError("a stage was run")

    monkeypatch.setattr("pipeline.execution.apply._apply", refuse)
    before = sorted(path.name for path in project.folder.iterdir())
    with pytest.raises(OutputError, match="cannot be written") as caught:
        run(parse_recipe(project.recipe), project.folder / out, root=project.folder, store=project.folder / ".store")
    assert caught.value.where is not None
    assert Path(out).name in caught.value.where
    assert sorted(path.name for path in project.folder.iterdir()) == before


def test_run_keeps_a_users_folder_when_it_has_the_name_of_a_target(project: Project) -> None:
    project.recipe |= {"targets": ["onnx"], "stages": []}
    (project.folder / "out" / "onnx").mkdir(parents=True)
    (project.folder / "out" / "onnx" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="was not written by a run"):
        run(parse_recipe(project.recipe), project.folder / "out", root=project.folder)
    assert (project.folder / "out" / "onnx" / "thesis.txt").read_text() == "years of work"


def test_require_space_says_how_much_is_needed_and_free(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(OutputError, match=r"about 1000000000 MB are needed, and \d+ MB are free"):
        require_space(tmp_path / "not" / "yet", 10**15)


@pytest.mark.parametrize("name", ["..", ".store", "", "a/b", "-x", "n" * 101])
def test_recipe_refuses_a_name_that_is_not_a_folder_of_its_own(project: Project, name: str) -> None:
    from pipeline.core import RecipeError

    with pytest.raises(RecipeError, match="name"):
        parse_recipe({**project.recipe, "name": name})
