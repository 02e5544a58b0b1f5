"""``run.log``: what is in it, that it is appended to, and that it ends somewhere."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pipeline.core.bounded import run_bounded
from pipeline.execution import log
from pipeline.execution.apply import run
from pipeline.execution.log import LOG, OLDER, run_log
from pipeline.recipe import parse_recipe
from tests.pipeline.conftest import Project

ours = logging.getLogger("pipeline.stages.example")


def test_run_says_in_its_log_what_each_pass_did_and_a_second_run_appends(project: Project) -> None:
    recipe = parse_recipe({**project.recipe, "stages": [{"prune": {"macs_ratio": 0.6}}]})
    out = project.folder / "out"
    run(recipe, out, root=project.folder)
    first = (out / LOG).read_text()
    for part in ("run of quadrants begins", '"macs_ratio":0.6', "pipeline.stages.prune", "run of quadrants is done"):
        assert part in first
    run(recipe, out, root=project.folder)
    both = (out / LOG).read_text()
    assert both.startswith(first)
    assert both.count("run of quadrants is done") == 2
    assert not logging.getLogger("pipeline").isEnabledFor(logging.DEBUG)


def test_error_is_in_the_log_with_its_traceback(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("in the middle")

    monkeypatch.setattr("pipeline.execution.apply._run_stages", fail)
    with pytest.raises(ZeroDivisionError):
        run(parse_recipe(project.recipe), project.folder / "out", root=project.folder)
    assert "ZeroDivisionError: in the middle" in (project.folder / "out" / LOG).read_text()


def test_log_stops_where_it_is_full_and_the_next_run_sets_it_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "MAX_BYTES", 1000)
    with run_log(tmp_path):
        for number in range(100):
            ours.debug("line %d", number)
    text = (tmp_path / LOG).read_text()
    assert 1000 < len(text) < 1200
    assert text.endswith("the log ends here: it has 1,000 bytes\n")
    with run_log(tmp_path):
        ours.debug("a new beginning")
    assert (tmp_path / OLDER).read_text() == text
    assert "a new beginning" in (tmp_path / LOG).read_text()


def speak() -> None:
    """What a function in a process of its own does."""
    ours.debug("a detail from the child")
    print("printed by the child")


def test_what_a_child_process_logs_and_prints_is_in_the_log(tmp_path: Path) -> None:
    with run_log(tmp_path):
        run_bounded(speak)
    text = (tmp_path / LOG).read_text()
    assert "speak in its own process: pipeline.stages.example: a detail from the child" in text
    assert "speak in its own process: printed by the child" in text
