"""Kill runs at random moments, run them again, and compare what they end with.

``python -m tests.torture.kills --count 200 --seed 1`` makes chains: a run is killed a few times, each time at a moment
drawn from the time that an undisturbed run takes, and then left to finish. Its report, but for times and ids, and its
artifacts have to be those of the undisturbed run. A run that is asked to stop has to stop at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.pipeline.conftest import make_project

ROOT = Path(__file__).parents[2]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STOPS_WITHIN_S = 5.0
KILLS_IN_A_CHAIN = 5
TIMES = frozenset({"id", "started_at", "duration_s", "latency", "fp32_latency", "verdict", "calibration_s", "slowest"})
"""Keys of a report that differ from run to run: clocks, and the verdict, which judges latencies."""


@dataclass
class Outcome:
    """What became of so many kills."""

    kills: int = 0
    runs: int = 0
    failures: list[str] = field(default_factory=list)


def torture(count: int, seed: int, *, say: Any = print) -> Outcome:
    """Kill runs ``count`` times in all.

    Args:
        seed: Of the moments and signals.
    """
    rng, outcome = random.Random(seed), Outcome()
    with tempfile.TemporaryDirectory(prefix="edgewright-kills-") as scratch:
        base = Path(scratch) / "quadrants"
        base.mkdir()
        _write_project(base)
        started = time.monotonic()
        undisturbed = shutil.copytree(base, Path(scratch) / "undisturbed")
        assert _start(undisturbed).wait() == 0, (undisturbed / "stderr").read_text()
        duration, expected = time.monotonic() - started, result_of(undisturbed / "out")
        say(f"an undisturbed run takes {duration:.1f} s")
        while outcome.kills < count:
            folder = shutil.copytree(base, Path(scratch) / f"chain{outcome.runs}")
            _chain(folder, min(KILLS_IN_A_CHAIN, count - outcome.kills), duration, expected, rng, outcome)
            shutil.rmtree(folder)
            say(f"{outcome.kills} kills, {outcome.runs} runs finished, {len(outcome.failures)} failures")
    return outcome


def _chain(
    folder: Path, kills: int, duration: float, expected: dict[str, Any], rng: random.Random, outcome: Outcome
) -> None:
    history = []
    for _ in range(kills):
        after, how = rng.uniform(0.05, 1.0) * duration, rng.choice(SIGNALS)
        history.append(f"{how.name} after {after:.2f} s")
        if problem := _kill(_start(folder), after, how):
            outcome.failures.append(f"{'; '.join(history)}: {problem}")
        outcome.kills += 1
    status = _start(folder).wait()
    outcome.runs += 1
    text = (folder / "stderr").read_text()
    if status != 0:
        outcome.failures.append(f"{'; '.join(history)}: the last run ended with {status}: {text[-2000:]}")
    elif differences := differences_of(expected, result_of(folder / "out")):
        outcome.failures.append(f"{'; '.join(history)}: {differences}")
    elif left := leftovers(folder):
        outcome.failures.append(f"{'; '.join(history)}: left behind: {left}")


def _kill(process: subprocess.Popen[bytes], after: float, how: signal.Signals) -> str | None:
    """Send a signal to a run's process group, and say what is wrong with how it ended."""
    try:
        process.wait(timeout=after)
        return None  # it finished first
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, how)
    try:
        status = process.wait(timeout=STOPS_WITHIN_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"{how.name} did not stop it within {STOPS_WITHIN_S:g} s"
    return f"{how.name} was swallowed" if status == 0 else None


def _write_project(folder: Path) -> None:
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


def _start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.torture.worker", "run", str(folder / "recipe.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (folder / "stderr").open("wb") as stderr:
        return subprocess.Popen(
            [*command, "--out", str(folder / "out")],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )


def result_of(out: Path) -> dict[str, Any]:
    """A run's report without times and ids, and the hash of each other file."""
    files = sorted(file for file in out.rglob("*") if file.is_file() and not file.name.startswith("."))
    hashes = {
        str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.name not in ("report.json", "report.html")
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = torture(options.count, options.seed)
    for failure in result.failures:
        print(f"FAILED: {failure}")
    print(f"{result.kills} kills, {result.runs} runs compared, {len(result.failures)} failures")
    sys.exit(1 if result.failures else 0)
