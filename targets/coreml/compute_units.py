"""How long a package takes on this Mac's processors: Core ML with each choice of compute units.

https://developer.apple.com/documentation/coreml/mlcomputeunits
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pipeline.machine import all_cores
from pipeline.target import Lowered, Measured, measured
from targets.coreml.session import CoremlSession

if TYPE_CHECKING:
    from pipeline.target import Array

UNITS = ("cpu_only", "cpu_and_gpu", "cpu_and_ne", "all")
WARMUP_RUNS, ROUNDS, RUNS_PER_ROUND = 10, 10, 10


def measure(lowered: Lowered) -> tuple[Measured, ...]:
    """Latency of one sample with each of `UNITS`, on macOS only; zeros are as fast as any other values."""
    sessions = [CoremlSession(lowered, units) for units in UNITS]
    sample = tuple(np.zeros((lowered.batch_size or 1, *spec.shape), spec.dtype) for spec in lowered.inputs)
    samples = alternate([_call(session, sample) for session in sessions])
    return tuple(
        measured(
            runtime=session.runtime, device=session.device, threads=all_cores(), warmup_ns=warmup, samples_ns=taken
        )
        for session, (warmup, taken) in zip(sessions, samples, strict=True)
    )


def alternate(
    calls: list[Callable[[], object]], *, rounds: int = ROUNDS, runs: int = RUNS_PER_ROUND
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Time calls in alternating blocks, so that drift of the machine affects all equally.

    Returns:
        Per call, durations of the warm-up and of ``rounds * runs`` samples in nanoseconds.
    """
    warmup = [[_clock(call) for _ in range(WARMUP_RUNS)] for call in calls]
    taken: list[list[int]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, durations in zip(calls, taken, strict=True):
            call()  # the caches still hold what the previous one needed
            durations.extend(_clock(call) for _ in range(runs))
    return [(tuple(first), tuple(rest)) for first, rest in zip(warmup, taken, strict=True)]


def _call(session: CoremlSession, sample: tuple[Array, ...]) -> Callable[[], object]:
    return lambda: session.run(sample)


def _clock(call: Callable[[], object]) -> int:
    started = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - started
