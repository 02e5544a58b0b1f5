"""A small run of every stage, as a process, and what it ended with."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.pipeline.conftest import make_project

ROOT = Path(__file__).parents[2]
TIMES = frozenset({"id", "started_at", "duration_s", "latency", "fp32_latency", "verdict", "calibration_s", "slowest"})
"""Keys of a report that differ from run to run: clocks, and the verdict, which judges latencies."""


def write_project(folder: Path) -> None:
    """A small recipe of every stage."""
    project = make_project(folder)
    project.recipe["data"]["train"]["limit"] = 128
    project.recipe |= {
        "targets": ["onnx"],
        "stages": [
            {"prune": {"macs_ratio": 0.6}},
            {"distill": {"epochs": 4, "checkpoint_minutes": 0.001}},
            {"quantize": {"observers": ["minmax"], "equalisation": False}},
        ],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(project.recipe))


def start(folder: Path, *, out: Path | None = None, file_bytes: int | None = None) -> subprocess.Popen[str]:
    """The command on a project's recipe, in a process group of its own.

    Args:
        out: The run's folder.
        file_bytes: No file that it writes may be larger.
    """
    command = [sys.executable, "-m", "tests.torture.worker", "run", str(folder / "recipe.yaml")]
    limited = [] if file_bytes is None else ["prlimit", f"--fsize={file_bytes}"]
    return subprocess.Popen(
        [*limited, *command, "--out", str(out or folder / "out")],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def finish(folder: Path, *, file_bytes: int | None = None) -> tuple[int, str]:
    """Exit status and stderr of a run that is left to end."""
    process = start(folder, file_bytes=file_bytes)
    _, text = process.communicate()
    return process.returncode, text


def result_of(out: Path) -> dict[str, Any]:
    """A run's report without times and ids, and the hash of each other file but the log, which tells every attempt."""
    files = sorted(file for file in out.rglob("*") if file.is_file() and not file.name.startswith("."))
    hashes = {
        str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.name not in ("report.json", "report.html", "run.log")
    }
    return {"report": _timeless(json.loads((out / "report.json").read_bytes())), "files": hashes}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in TIMES and not key.endswith("_s")}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def differences_of(expected: Any, found: Any, path: str = "") -> str:
    """Where two JSON values differ, at most three places."""
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        parts = [differences_of(expected[key], found[key], f"{path}.{key}") for key in expected]
        return "; ".join([part for part in parts if part][:3])
    return "" if expected == found else f"{path}: {str(expected)[:80]} became {str(found)[:80]}"


def leftovers(folder: Path) -> list[str]:
    """What a finished run should not leave in its folder and its store."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob(".*")
        if path.name.startswith((".unfinished", ".under-way", ".edgewright-writing", ".damaged", ".float32", ".parts"))
    ]
