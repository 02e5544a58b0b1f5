"""Models that keep states: the loop, checked against torch's own layers, and a run of one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.cli.show import summary
from pipeline.core import CheckpointError, DataError, Model, RecipeError
from pipeline.execution.apply import run
from pipeline.execution.prepare import Prepared, check
from pipeline.recipe import Recipe, parse_recipe
from pipeline.target import Measured, measured
from pipeline.tasks.loop import loop_of
from pipeline.tasks.prediction import predictor

MODULE = "networks_with_states"
NETWORKS = """
from torch import nn


class Voice(nn.Module):
    def __init__(self, swap=False):
        super().__init__()
        self.cell, self.head, self.swap = nn.LSTMCell(6, 8), nn.Linear(8, 1), swap

    def forward(self, sound, h, c):
        h, c = self.cell(sound, (h, c))
        return {"speech": self.head(h).sigmoid(), "h_out": h, "c_out": c[:, :4] if self.swap else c}


class Only(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(6, 8)

    def forward(self, sound, h):
        return self.cell(sound, h)
"""
INPUTS = [{"name": "sound", "shape": [6]}, {"name": "h", "shape": [8]}, {"name": "c", "shape": [8]}]
STATES = {"h": "h_out", "c": "c_out"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("states")
    (folder / f"{MODULE}.py").write_text(NETWORKS)
    namespace: dict[str, Any] = {}
    exec(NETWORKS, namespace)  # the file itself is imported by the run
    torch.manual_seed(0)
    save_file(namespace["Voice"]().state_dict(), folder / "voice.safetensors")
    save_file(namespace["Only"]().state_dict(), folder / "only.safetensors")
    generator = np.random.default_rng(0)
    sound = generator.standard_normal((24, 10, 6)).astype(np.float32)
    np.savez(folder / "set.npz", images=sound, labels=generator.integers(0, 2, (24, 10, 1)))
    np.savez(folder / "steps.npz", images=sound[:, 0])
    yield folder
    sys.modules.pop(MODULE, None)


def recipe(network: str = "Voice", data: str = "set.npz", labels: str | None = None, **more: Any) -> Recipe:
    model = {
        "factory": f"{MODULE}:{network}", "checkpoint": f"{network.lower()}.safetensors", "inputs": INPUTS,
        "states": STATES, **more.pop("model", {}),
    }  # fmt: skip
    source = {"npz": data, "labels": labels}
    sets = {"calibration": source, "evaluation": source}
    return parse_recipe({"name": "voice", "model": model, "data": sets, **more})


def _expected(module: Any, sound: Tensor) -> Tensor:
    """The outputs of a Voice, by torch's own layer over the whole sequence."""
    layer = nn.LSTM(6, 8, batch_first=True)
    layer.load_state_dict({f"{name}_l0": value for name, value in module.cell.state_dict().items()})
    return module.head(layer(sound)[0]).sigmoid().detach()


def _sequences(prepared: Prepared) -> tuple[Tensor, ...]:
    return next(prepared.evaluation.batches(8)).inputs


def test_loop_gives_what_torch_gives_for_the_whole_sequence(project: Path) -> None:
    prepared = check(recipe(), project)
    model, sequences = prepared.model, _sequences(prepared)
    loop = loop_of(model)
    assert loop is not None
    (found,) = loop.around(predictor(model.module))(sequences)
    torch.testing.assert_close(found, _expected(model.module, *sequences))


def test_stages_see_steps_with_the_states_of_the_original(project: Path) -> None:
    prepared = check(recipe(), project)
    assert prepared.calibration is not None
    assert prepared.held_out is not None
    assert (len(prepared.calibration), len(prepared.held_out)) == (210, 30)  # of 21 and 3 sequences of 10 steps
    sound, h, _ = next(prepared.calibration.batches(10)).inputs
    assert h[0].count_nonzero() == 0
    following, _ = prepared.model.module.cell(sound[:1], (h[:1], torch.zeros(1, 8)))
    torch.testing.assert_close(h[1:2], following)
    assert prepared.model.examples[1].abs().sum(1).count_nonzero() >= 7  # all but a first step


def test_state_that_is_the_only_output_is_the_result(project: Path) -> None:
    prepared = check(recipe("Only", model={"inputs": INPUTS[:2], "states": {"h": "output"}}), project)
    loop, (sound,) = loop_of(prepared.model), _sequences(prepared)
    assert loop is not None
    layer = nn.GRU(6, 8, batch_first=True)
    layer.load_state_dict({f"{name}_l0": value for name, value in prepared.model.module.cell.state_dict().items()})
    torch.testing.assert_close(loop.around(predictor(prepared.model.module))((sound,))[0], layer(sound)[0].detach())


def test_timed_loop_gives_back_the_states_that_the_file_gave(project: Path) -> None:
    model = check(recipe(), project).model
    loop = loop_of(model)
    assert loop is not None
    steps = [(np.full((1, 6), number, np.float32), np.zeros((1, 8)), np.zeros((1, 8))) for number in range(3)]
    given = []

    def run(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        given.append([float(value.flat[0]) for value in inputs])
        return (np.zeros((1, 1)), inputs[1] + 1, inputs[2] + 10)  # speech, h_out, c_out

    loop.through(run, steps)
    assert given == [[0, 0, 0], [1, 1, 10], [2, 2, 20]]
    assert loop.outputs == ("speech", "h_out", "c_out")


def test_latency_of_a_loop_is_that_of_one_step() -> None:
    record = measured(runtime="r", device="cpu", threads=1, warmup_ns=(900,), samples_ns=(100, 300, 200), steps=10)
    assert (record.steps, record.samples_ns, record.median_ns, record.warmup_ns) == (10, (10, 30, 20), 20, (90,))


@pytest.mark.slow
def test_run_evaluates_whole_sequences_on_each_target(project: Path, tmp_path: Path) -> None:
    steps = {"stages": [{"quantize": {"observers": ["minmax"]}}], "targets": ["onnx"], "task": "binary"}
    report = run(recipe(labels="labels", budget={"max_drop": 1.0}, **steps), tmp_path / "out", root=project)
    (target,) = report.targets
    assert target.status == "ok", target.reason
    assert target.metrics is not None
    assert target.metrics["auroc"] == pytest.approx(report.original.metrics["auroc"], abs=0.05)
    assert target.fidelity is not None
    assert target.fidelity.keys() == {"speech"}
    assert target.fidelity["speech"].sqnr_db is None or target.fidelity["speech"].sqnr_db > 30
    latencies = [*report.original.latency, *target.latency, *target.fp32_latency]
    assert {latency.steps for latency in latencies if isinstance(latency, Measured)} == {10}  # all that a sequence has
    assert "step of a loop of 10 steps" in (tmp_path / "out/report.html").read_text()
    assert "a step of 10" in summary(report)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no such input": (
        {"states": {"hh": "h_out"}},
        CheckpointError,
        "no input 'hh'; there are sound, h, c|did you mean 'h'",
    ),
    "no such output": (
        {"states": {"h": "h_out", "c": "cout"}},
        CheckpointError,
        "no output 'cout'; did you mean 'c_out'",
    ),
    "one output for two": (
        {"states": {"h": "h_out", "c": "h_out"}},
        RecipeError,
        "the output 'h_out' becomes two states",
    ),
    "another shape": ({"kwargs": {"swap": True}}, CheckpointError, r"'c_out' is float32 \['N', 4\], and the state 'c'"),
    "no step": ({"inputs": INPUTS[1:]}, CheckpointError, "every input is a state"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_states_that_do_not_fit_are_refused(name: str, project: Path) -> None:
    changes, refusal, message = REFUSED[name]
    with pytest.raises(refusal, match=message):
        check(recipe(model=changes), project)


def test_samples_that_are_no_sequences_are_refused(project: Path) -> None:
    with pytest.raises(DataError, match=r"have shape \[6\], and the model keeps states: a sample is a sequence"):
        check(recipe(data="steps.npz"), project)


def test_models_without_states_have_no_loop() -> None:
    assert loop_of(Model(module=nn.Identity(), reference=nn.Identity(), inputs=())) is None
