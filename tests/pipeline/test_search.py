import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from pipeline.core import RecipeError
from pipeline.recipe import parse_recipe, read_recipe
from pipeline.runner import check
from pipeline.search import _judged_on_training_data, parse_objective, propose, search
from tests.pipeline.conftest import Project

ROOT = Path(__file__).parents[2]


def test_judged_recipe_never_sees_the_evaluation_set_when_it_is_prepared(project: Project) -> None:
    recipe = parse_recipe(project.recipe)
    (project.folder / "test.npz").unlink()  # nothing may read it
    prepared = check(_judged_on_training_data(recipe, project.folder), project.folder)
    assert len(prepared.evaluation) == 102  # a fifth of 512
    fitted = {tensor.numpy().tobytes() for batch in prepared.train.batches(64) for tensor in batch.inputs[0]}
    judged = {tensor.numpy().tobytes() for batch in prepared.evaluation.batches(64) for tensor in batch.inputs[0]}
    assert fitted.isdisjoint(judged)


def test_propose_replaces_only_what_is_searched_when_a_trial_suggests(project: Project) -> None:
    recipe = parse_recipe(project.recipe)
    settings = {"0.prune.macs_ratio": 0.3, "0.prune.importance": "taylor", "0.prune.allocation": "importance"}
    settings |= {"1.distill.temperature": 8.0, "1.distill.alpha": 0.5, "1.distill.learning_rate": 0.1}
    proposed = propose(recipe, optuna.trial.FixedTrial({**settings, "2.quantize.observers": "mse"}))
    prune, distill, quantize = (step.config for step in proposed.stages)
    assert (prune.macs_ratio, prune.importance, distill.temperature) == (0.3, "taylor", 8.0)
    assert quantize.observers == ("mse",)
    assert distill.epochs == recipe.stages[1].config.epochs
    assert proposed.model_copy(update={"stages": recipe.stages}) == recipe


@pytest.mark.parametrize("text", ["speed", "latency", "size"])
def test_parse_objective_refuses_when_it_is(text: str) -> None:
    with pytest.raises(RecipeError, match="there is no objective"):
        parse_objective(text)


@pytest.mark.slow
def test_search_writes_the_points_that_no_trial_beats_and_goes_on_when_it_is_called_again(project: Project) -> None:
    project.recipe |= {"targets": ["onnx"], "stages": [{"prune": {"macs_ratio": 0.6}}, {"quantize": {}}]}
    recipe, out = parse_recipe(project.recipe), project.folder / "search"
    objectives = [parse_objective("agreement"), parse_objective("size:onnx")]
    for trials in (1, 3):
        points = search(recipe, out, trials=trials, objectives=objectives, root=project.folder, seed=0)
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


@pytest.mark.slow
def test_search_loses_and_doubles_no_trial_when_one_of_two_workers_is_killed(project: Project) -> None:
    project.recipe |= {"targets": ["onnx"], "stages": [{"prune": {"macs_ratio": 0.6}}, {"quantize": {}}]}
    recipe, out = project.write(), project.folder / "search"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{project.folder}"}
    command = [sys.executable, str(Path(__file__).with_name("search_worker.py")), str(recipe), str(out), "2"]
    victim = subprocess.Popen(command, env=environment, start_new_session=True)
    url = f"sqlite:///{out / 'study.db'}"
    deadline = time.monotonic() + 120
    while not _states(url).get("RUNNING"):
        assert time.monotonic() < deadline
        assert victim.poll() is None
        time.sleep(0.2)
    other = subprocess.Popen(command, env=environment, start_new_session=True)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    assert other.wait(timeout=170) == 0
    study = optuna.load_study(study_name="quadrants", storage=url)
    complete = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    lost = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.FAIL]
    assert len(complete) == 2
    assert len(lost) == 1
    assert [trial.params for trial in complete if trial.user_attrs.get("instead_of") == lost[0].number] == [
        lost[0].params
    ]


def _states(url: str) -> dict[str, int]:
    try:
        study = optuna.load_study(study_name="quadrants", storage=url)
        names = [trial.state.name for trial in study.trials if trial.params]
    except Exception:  # the victim has not made its tables yet
        return {}
    return {name: names.count(name) for name in names}
