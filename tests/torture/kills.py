"""Kill runs at random moments, run them again, and compare what they end with.

``python -m tests.torture.kills --count 200 --seed 1`` makes chains: a run is killed a few times, each time at a moment
drawn from the time that an undisturbed run takes, and then left to finish. Its report, but for times and ids, and its
artifacts have to be those of the undisturbed run. A run that is asked to stop has to stop at once.
"""

from __future__ import annotations

import argparse
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

from tests.torture.runs import differences_of, finish, leftovers, result_of, start, write_project

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STOPS_WITHIN_S = 5.0
KILLS_IN_A_CHAIN = 5


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
        write_project(base)
        started = time.monotonic()
        undisturbed = shutil.copytree(base, Path(scratch) / "undisturbed")
        status, text = finish(undisturbed)
        assert status == 0, text
        duration, expected = time.monotonic() - started, result_of(undisturbed / "out")
        say(f"an undisturbed run takes {duration:.1f} s")
        while outcome.kills < count:
            known = len(outcome.failures)
            folder = shutil.copytree(base, Path(scratch) / f"chain{outcome.runs}")
            _chain(folder, min(KILLS_IN_A_CHAIN, count - outcome.kills), duration, expected, rng, outcome)
            shutil.rmtree(folder)
            for failure in outcome.failures[known:]:
                say(f"FAILED: {failure}")
            say(f"{outcome.kills} kills, {outcome.runs} runs finished, {len(outcome.failures)} failures")
    return outcome


def _chain(
    folder: Path, kills: int, duration: float, expected: dict[str, Any], rng: random.Random, outcome: Outcome
) -> None:
    history = []
    for _ in range(kills):
        after, how = rng.uniform(0.05, 1.0) * duration, rng.choice(SIGNALS)
        history.append(f"{how.name} after {after:.2f} s")
        if problem := _kill(start(folder), after, how):
            outcome.failures.append(f"{'; '.join(history)}: {problem}")
        outcome.kills += 1
    status, text = finish(folder)
    outcome.runs += 1
    if status != 0:
        outcome.failures.append(f"{'; '.join(history)}: the last run ended with {status}: {text[-2000:]}")
    elif differences := differences_of(expected, result_of(folder / "out")):
        outcome.failures.append(f"{'; '.join(history)}: {differences}")
    elif left := leftovers(folder):
        outcome.failures.append(f"{'; '.join(history)}: left behind: {left}")


def _kill(process: subprocess.Popen[str], after: float, how: signal.Signals) -> str | None:
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = torture(options.count, options.seed)
    print(f"{result.kills} kills, {result.runs} runs compared, {len(result.failures)} failures")
    sys.exit(1 if result.failures else 0)
