import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.report.model import Report, read_report
from tests.pipeline.conftest import Project

ROOT = Path(__file__).parents[3]
NETWORK = """
from torch import nn


def plain(width=16):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(width * 16, 4),
    )
"""  # without batch norms, which see their own process's part of each batch only


def run(project: Project, processes: int) -> tuple[Report, str]:
    """The report, and what the command line printed."""
    out = project.folder / f"on_{processes}" / "run"
    launch = [sys.executable, "-m"]
    if processes > 1:  # what `accelerate launch` runs on GPUs; on CPUs it wants mpirun
        launch += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command = [*launch, "pipeline.cli", "run", "recipe.yaml", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, cwd=project.folder, check=True, timeout=170, capture_output=True, text=True
    )
    return read_report(out / "report.json"), done.stdout


@pytest.mark.slow
def test_run_writes_one_report_of_the_same_model_when_two_processes_share_it(project: Project) -> None:
    (project.folder / "plain.py").write_text(NETWORK)
    torch.manual_seed(0)
    save_file(__import__("plain").plain().state_dict(), project.folder / "model.safetensors")
    project.recipe["model"]["factory"] = "plain:plain"
    project.recipe["stages"] = [
        {"prune": {"macs_ratio": 0.6, "recover": {"epochs": 1, "batch_size": 32}}},
        {"distill": {"epochs": 2, "batch_size": 32, "features": {"kind": "hint"}}},
        {"quantize": {}},
    ]
    project.recipe["targets"] = ["onnx"]
    project.write()
    (alone, _), (together, printed) = run(project, 1), run(project, 2)
    assert [stage.stage for stage in together.stages] == ["prune", "distill", "quantize"]
    for one, two in zip(alone.stages, together.stages, strict=True):
        assert (one.macs, one.parameters, one.config) == (two.macs, two.parameters, two.config)
        assert one.metrics == pytest.approx(two.metrics, abs=0.01)
    losses = [[epoch["loss"] for epoch in report.stages[1].details["epochs"]] for report in (alone, together)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert together.targets[0].status == "ok"
    assert printed.count("report.html") == 1
    stores = [project.folder / name / ".store" for name in ("on_1", "on_2")]
    stored = [sum(entry.is_dir() for entry in store.iterdir()) for store in stores]
    assert stored == [4, 4]  # three stages, one export; nothing half-written stays
    logs = [(project.folder / name / "run" / "training_2.csv").read_text() for name in ("on_1", "on_2")]
    assert logs[0].count("\n") == logs[1].count("\n") == 1 + 2 * (14 + 1)


@pytest.mark.slow
def test_run_refuses_when_processes_would_prune_by_their_own_clocks_and_train(project: Project) -> None:
    project.recipe["stages"] = [{"prune": {"latency_ratio": 0.5, "latency_target": "onnx", "recover": {"epochs": 1}}}]
    project.recipe["targets"] = ["onnx"]
    project.write()
    with pytest.raises(subprocess.CalledProcessError) as refusal:
        run(project, 2)
    assert "every process would prune by its own clock" in refusal.value.stderr
