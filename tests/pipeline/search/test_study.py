from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from pipeline.core import RecipeError
from pipeline.execution.apply import run
from pipeline.execution.prepare import check
from pipeline.recipe import parse_recipe, read_recipe
from pipeline.report.model import OLD_METRICS as METRICS
from pipeline.search.objectives import parse_objective
from pipeline.search.study import open_storage, search
from pipeline.search.trials import SPACE
from tests.pipeline.conftest import Project
from tests.pipeline.search import postgresql as server

ROOT = Path(__file__).parents[3]
_PATIENCE_S = 300  # a test machine may be busy


@pytest.mark.slow
def test_search_writes_the_points_that_no_trial_beats_and_goes_on_when_it_is_called_again(project: Project) -> None:
    project.recipe |= {"targets": ["onnx"], "stages": [{"prune": {"macs_ratio": 0.6}}, {"quantize": {}}]}
    recipe, out = parse_recipe(project.recipe), project.folder / "search"
    objectives = [parse_objective("agreement", METRICS), parse_objective("size:onnx", METRICS)]
    for trials in (1, 3):
        points = search(recipe, out, trials=trials, objectives=objectives, root=project.folder, run=run, seed=0)
    front = json.loads((out / "front.json").read_text())
    assert front["trials"]["complete"] == 3
    done = [json.loads((out / "trials" / str(number) / "report.json").read_text())["targets"][0] for number in range(3)]
    values = [(target["metrics"]["agreement"], target["artifact"]["size_bytes"]) for target in done]
    best = {v for v in values if not any(o[0] >= v[0] and o[1] <= v[1] and o != v for o in values)}
    assert {(point["values"]["agreement"], point["values"]["size:onnx"]) for point in front["front"]} == best
    assert len(points) == len(front["front"])
    for point in points:
        path = out / point.recipe
        assert (
            check(read_recipe(path), path.parent).recipe.stages[0].config.macs_ratio
            == point.settings["0.prune.macs_ratio"]
        )
        assert f">{point.trial}</a>" in (out / "front.html").read_text()


def test_open_storage_succeeds_for_every_worker_when_all_start_at_once_on_no_database(tmp_path: Path) -> None:
    barrier = threading.Barrier(4)

    def open_it(url: str) -> str:
        barrier.wait()
        return open_storage(url).get_current_version()

    with ThreadPoolExecutor(barrier.parties) as workers:
        for number in range(3):
            versions = list(workers.map(open_it, [f"sqlite:///{tmp_path / str(number)}.db"] * barrier.parties))
            assert len(set(versions)) == 1


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("sqlite:////no/such/folder/study.db", "cannot be opened"),
        ("nosuch://host/db", "no driver"),
        ("what?", "no driv"),
    ],
)
def test_open_storage_refuses_when_there_is_no_such_database(
    url: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.search.study._OPENINGS", 1)
    with pytest.raises(RecipeError, match=problem):
        open_storage(url)


@pytest.mark.slow
def test_search_loses_and_doubles_no_trial_when_one_of_two_workers_is_killed(project: Project) -> None:
    assert_survives_a_kill(Workers(project, trials=2))


@pytest.mark.slow
def test_search_loses_and_doubles_no_trial_when_one_of_two_workers_on_postgresql_is_killed(
    project: Project, postgresql: str
) -> None:
    assert_survives_a_kill(Workers(project, trials=2, storage=postgresql))


def assert_survives_a_kill(workers: Workers) -> None:
    """Two workers start together on an empty folder; one dies in the middle of a trial, which the other runs, once."""
    processes = {process.pid: process for process in (workers.start(), workers.start())}
    deadline = time.monotonic() + _PATIENCE_S
    while not (running := [trial for trial in workers.trials(TrialState.RUNNING) if workers.can_take_up(trial)]):
        assert all(process.poll() is None for process in processes.values())
        assert time.monotonic() < deadline
        time.sleep(0.1)
    victim = processes.pop(int(running[0].user_attrs["worker"].rpartition(":")[2]))
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    (other,) = processes.values()
    assert other.wait(timeout=_PATIENCE_S) == 0
    complete, lost = workers.trials(TrialState.COMPLETE), workers.trials(TrialState.FAIL)
    assert len(complete) == 2
    assert len(lost) == 1
    taken_up = [trial for trial in complete if trial.user_attrs.get("instead_of") == lost[0].number]
    assert [trial.params for trial in taken_up] == [lost[0].params]


@pytest.fixture
def postgresql() -> Iterator[str]:
    """The URL of a server that lives as long as the test; its folder must be open to another user than root."""
    if server.programs() is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="the driver is not installed (pip install edgewright[search])")
    with tempfile.TemporaryDirectory() as folder, server.running(Path(folder)) as url:
        yield url


class Workers:
    """Processes that search together."""

    def __init__(self, project: Project, *, trials: int, storage: str | None = None) -> None:
        project.recipe |= {"targets": ["onnx"], "stages": [{"prune": {"macs_ratio": 0.6}}]}
        out = project.folder / "search"
        script = Path(__file__).with_name("search_worker.py")
        self._storage = storage or f"sqlite:///{out / 'study.db'}"
        self._command = [sys.executable, str(script), str(project.write()), str(out), str(trials), self._storage]
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{project.folder}"}
        out.mkdir()

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, env=self._environment, start_new_session=True)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The study's trials whose settings are drawn; makes no table."""
        engine = sqlalchemy.create_engine(self._storage)
        tables = sqlalchemy.inspect(engine).get_table_names()
        engine.dispose()
        if "alembic_version" not in tables:  # made last
            return []
        try:
            study = optuna.load_study(study_name="quadrants", storage=self._storage)
        except KeyError:  # there are tables, but no study yet
            return []
        return [trial for trial in study.get_trials(states=states or None) if trial.params]

    def can_take_up(self, trial: FrozenTrial) -> bool:
        """Whether another worker could run a trial again with the same settings, should its own worker die now.

        Settings are stored one by one, and the next worker draws those that are missing. Optuna takes a trial for
        lost when its heartbeats stop, and a thread of the worker's stores the first one beside the settings.
        """
        engine = sqlalchemy.create_engine(self._storage)
        beating = "SELECT number FROM trials JOIN trial_heartbeats ON trials.trial_id = trial_heartbeats.trial_id"
        with engine.connect() as connection:
            numbers = set(connection.execute(sqlalchemy.text(beating)).scalars())
        engine.dispose()
        return len(trial.params) == len(SPACE["prune"]) and trial.number in numbers
