import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "train_on_two_processes.py"
ROOT = Path(__file__).parents[3]


def train(processes: int, folder: Path) -> list[dict[str, list]]:
    """What each process saw, in order of rank."""
    folder.mkdir()
    launch = [sys.executable]
    if processes > 1:  # on CPUs `accelerate launch` wants mpirun; torch's own launcher sets the same environment
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    subprocess.run([*launch, str(SCRIPT), str(folder)], env=environment, check=True, timeout=170, capture_output=True)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.slow
def test_fit_gives_the_weights_of_one_process_when_it_runs_on_two(tmp_path: Path) -> None:
    (alone,) = train(1, tmp_path / "one")
    first, second = train(2, tmp_path / "two")
    # Each step's batch is divided: both halves together are the batch that one process sees.
    for whole, left, right in zip(alone["seen"], first["seen"], second["seen"], strict=True):
        assert sorted(left + right) == sorted(whole)
        assert len(left) == len(right) == 8
    expected = load_file(tmp_path / "one" / "weights0.safetensors")
    for rank in (0, 1):
        weights = load_file(tmp_path / "two" / f"weights{rank}.safetensors")
        for name, tensor in expected.items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=1e-6)
    assert first["losses"] == second["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert not (tmp_path / "two" / "training.pt").exists()
