"""How long a package takes on this Mac's processors: Core ML with each choice of compute units.

https://developer.apple.com/documentation/coreml/mlcomputeunits
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.machine.processor import all_cores
from pipeline.machine.timing import Candidate, interleave
from pipeline.target import Lowered, Measured, measured
from targets.coreml.session import CoremlSession

if TYPE_CHECKING:
    from pipeline.target import Array

UNITS = ("cpu_only", "cpu_and_gpu", "cpu_and_ne", "all")
RUNS_PER_ROUND = 10


def measure(lowered: Lowered) -> tuple[Measured, ...]:
    """Latency of one sample with each of `UNITS`, on macOS only; zeros are as fast as any other values."""
    sessions = [CoremlSession(lowered, units) for units in UNITS]
    sample = tuple(np.zeros((lowered.batch_size or 1, *spec.shape), spec.dtype) for spec in lowered.inputs)
    candidates = [_candidate(session, sample) for session in sessions]
    return tuple(
        measured(runtime=each.runtime, device=each.device, threads=all_cores(), warmup_ns=warmup, samples_ns=taken)
        for each, (warmup, taken) in zip(candidates, interleave(candidates, runs=RUNS_PER_ROUND), strict=True)
    )


def _candidate(session: CoremlSession, sample: tuple[Array, ...]) -> Candidate:
    return Candidate(runtime=session.runtime, device=session.device, call=lambda: session.run(sample))
