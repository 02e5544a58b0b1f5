"""A few of the damaged files that ``python -m tests.torture models`` makes, and some through the command itself."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.mutations import mutate
from tests.torture.originals import FORMATS, write_originals

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_files_run_or_are_refused(suffix: str) -> None:
    command = [sys.executable, "-m", "tests.torture", "models", "--count", "40", "--seed", "2", "--format", suffix]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)  # a fork needs a process without threads
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "40 tried, 40 held, 0 failed" in ended.stdout
    assert " ran" in ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_user_gets_one_error_or_none(suffix: str, tmp_path: Path) -> None:
    for number in range(3):
        rng = random.Random(f"{suffix} {number}")
        (folder := tmp_path / str(number)).mkdir()
        original, samples = rng.choice(write_originals(folder, suffix))
        mutate(original, folder / f"damaged{suffix}", rng)
        command = [sys.executable, "-m", "pipeline.cli", "predict", folder / f"damaged{suffix}", "-i", samples]
        ended = subprocess.run([*command, "-o", folder / "out.npz"], cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode in (0, 2), ended.stderr
        assert (folder / "out.npz").exists() == (ended.returncode == 0)
        assert "Traceback" not in ended.stderr
        if ended.returncode == 2:
            assert ended.stderr.startswith(f"error: {folder}/damaged{suffix}")
            assert len(ended.stderr) < 1000
