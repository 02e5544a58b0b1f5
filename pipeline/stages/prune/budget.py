"""Budgets: how much of a cost may stay, and how that cost is counted or timed."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pipeline.core import Model, StageError
from pipeline.models.capture import count_macs, count_parameters, example_inputs
from pipeline.recipe import PruneConfig
from pipeline.target import Session, Target

_WARMUP = 20
_ROUNDS = 30
_PER_ROUND = 5


@dataclass(frozen=True, slots=True)
class Budget:
    """A cost that must come down.

    Attributes:
        share: Of the original's cost, what may stay.
        kept: What share a module still has.
    """

    name: str
    share: float
    kept: Callable[[nn.Module], float]


def budgets_of(model: Model, config: PruneConfig, target: Target | None = None) -> tuple[Budget, ...]:
    """The budgets that a configuration names, each as a share of the original's cost.

    Raises:
        StageError: Latency is a budget, and the target is not given or cannot run here.
    """
    counts: tuple[tuple[str, float | None, int | None, Callable[[nn.Module], float]], ...] = (
        ("macs", config.macs_ratio, config.max_macs, lambda module: count_macs(module, model.inputs)),
        ("parameters", config.parameters_ratio, config.max_parameters, count_parameters),
        ("size_bytes", config.size_ratio, config.max_size_bytes, size_bytes),
    )
    budgets = []
    for name, ratio, limit, count in counts:
        if ratio is not None or limit is not None:
            budgets.append(_counted(name, count, count(model.reference), ratio, limit))
    if config.latency_ratio is not None or config.max_latency_ns is not None:
        budgets.append(_timed(model, config, target))
    return tuple(budgets)


def _counted(
    name: str, count: Callable[[nn.Module], float], whole: float, ratio: float | None, limit: int | None
) -> Budget:
    shares = [share for share in (ratio, None if limit is None else limit / whole) if share is not None]
    return Budget(name, min(shares), lambda module: count(module) / whole)


def size_bytes(module: nn.Module) -> int:
    """Bytes of all weights, biases and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def _timed(model: Model, config: PruneConfig, target: Target | None) -> Budget:
    """Latency on a target (1 thread, batch 1): both models' rounds alternate, so drift hits both alike."""
    if target is None or target.name != config.latency_target:
        raise StageError(
            f"the latency budget needs target {config.latency_target!r}", where="prune", fix="list it under targets"
        )
    reason = target.cannot_run()
    if reason is not None:
        raise StageError(f"latency cannot be measured: {reason}", where="prune", fix="give a budget of macs_ratio")
    original = load_session(target, model.original())
    if original.metrics_source == "reference":
        raise StageError(
            f"latency cannot be measured: {original.runtime} only stands in for the target's own runtime here",
            where="prune",
            fix="give a budget of macs_ratio",
        )

    def kept(module: nn.Module) -> float:
        candidate = load_session(target, dataclasses.replace(model, module=module))
        medians = interleaved_medians(model, (original, candidate))
        return medians[1] / medians[0]

    shares = []
    if config.latency_ratio is not None:
        shares.append(config.latency_ratio)
    if config.max_latency_ns is not None:
        shares.append(config.max_latency_ns / interleaved_medians(model, (original,))[0])
    return Budget("latency", min(shares), kept)


def load_session(target: Target, model: Model) -> Session:
    """The artifact lowered and loaded on one thread; the file is gone again."""
    with tempfile.TemporaryDirectory() as folder:
        return target.load(target.lower(model, Path(folder), name="candidate"), threads=1)


def interleaved_medians(model: Model, sessions: tuple[Session, ...]) -> list[float]:
    """Median nanoseconds of one sample, per session."""
    inputs = tuple(tensor.numpy() for tensor in example_inputs(model.inputs))
    samples: list[list[int]] = [[] for _ in sessions]
    for session in sessions:
        for _ in range(_WARMUP):
            session.run(inputs)
    for _ in range(_ROUNDS):
        for session, times in zip(sessions, samples, strict=True):
            for _ in range(_PER_ROUND):
                started = time.perf_counter_ns()
                session.run(inputs)
                times.append(time.perf_counter_ns() - started)
    return [statistics.median(times) for times in samples]
