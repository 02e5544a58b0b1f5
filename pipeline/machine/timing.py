"""Timing several candidates in turns, so that a drift of the machine affects all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

WARMUP_RUNS = 10
ROUNDS = 10
SHORTEST_BLOCK, LONGEST_BLOCK = 3, 30
"""How many calls of one candidate are timed in a round, where the time decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Something to be timed.

    Attributes:
        runtime: Name and version of what executes it.
        device: The processor it runs on.
        call: One forward pass.
        prepare: Runs untimed before each block.
    """

    runtime: str
    device: str
    call: Callable[[], object]
    prepare: Callable[[], None] = lambda: None


def interleave(
    candidates: Sequence[Candidate],
    *,
    warmup_runs: int = WARMUP_RUNS,
    rounds: int = ROUNDS,
    runs: int | None = None,
    seconds_per_candidate: float = 2.0,
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Time candidates in alternating blocks.

    Args:
        warmup_runs: Calls of each candidate before the first round.
        rounds: Blocks of each candidate.
        runs: Timed calls in a block.
        seconds_per_candidate: Decides how many calls are in a block where ``runs`` does not.

    Returns:
        Per candidate, warm-up and sample durations of single calls in nanoseconds, in the order they were taken.
    """
    warmup = [_warm_up(candidate, warmup_runs) for candidate in candidates]
    blocks = [runs or _block(durations, seconds_per_candidate / rounds) for durations in warmup]
    samples: list[list[int]] = [[] for _ in candidates]
    with _no_garbage_collection():
        for _ in range(rounds):
            for candidate, block, durations in zip(candidates, blocks, samples, strict=True):
                candidate.prepare()
                candidate.call()  # the caches still hold the previous candidate's weights
                durations += _durations(candidate.call, block)
    return [(tuple(first), tuple(rest)) for first, rest in zip(warmup, samples, strict=True)]


def _warm_up(candidate: Candidate, runs: int) -> list[int]:
    candidate.prepare()
    return _durations(candidate.call, runs)


def _block(warmup_ns: Sequence[int], seconds: float) -> int:
    """How many calls fill this time, within bounds."""
    return max(SHORTEST_BLOCK, min(LONGEST_BLOCK, int(seconds / (statistics.median(warmup_ns) * 1e-9))))


def _durations(call: Callable[[], object], runs: int) -> list[int]:
    """Nanoseconds of each call."""
    taken = []
    for _ in range(runs):
        started = time.perf_counter_ns()
        call()
        taken.append(time.perf_counter_ns() - started)
    return taken


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
