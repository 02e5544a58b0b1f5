"""Cost limits: how much of a cost may stay, and how that cost is counted or timed."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pipeline.core import Model, StageError
from pipeline.machine.timing import Candidate, interleave
from pipeline.models.capture import count_macs, count_parameters, example_inputs
from pipeline.recipe import PruneConfig
from pipeline.target import Session, Target


@dataclass(frozen=True, slots=True)
class CostLimit:
    """A cost that has to come down.

    Attributes:
        name: ``macs``, ``parameters``, ``size_bytes`` or ``latency``.
        share: How much of the original's cost may stay, a ratio.
        kept: What share of the original's cost a module has.
    """

    name: str
    share: float
    kept: Callable[[nn.Module], float]

    def is_met(self, module: nn.Module) -> bool:
        """Whether a module costs no more than may stay."""
        return self.kept(module) <= self.share


def cost_limits(model: Model, config: PruneConfig, target: Target | None = None) -> tuple[CostLimit, ...]:
    """The limits that a configuration names, each as a share of the original's cost.

    Raises:
        StageError: Latency is limited, and the target is not given or cannot run here.
    """
    counts: tuple[tuple[str, float | None, int | None, Callable[[nn.Module], float]], ...] = (
        ("macs", config.macs_ratio, config.max_macs, lambda module: count_macs(module, model.examples or model.inputs)),
        ("parameters", config.parameters_ratio, config.max_parameters, count_parameters),
        ("size_bytes", config.size_ratio, config.max_size_bytes, size_bytes),
    )
    limits = []
    for name, ratio, most, count in counts:
        if ratio is not None or most is not None:
            limits.append(_counted(name, count, count(model.reference), ratio, most))
    if config.latency_ratio is not None or config.max_latency_ns is not None:
        limits.append(_timed(model, config, target))
    return tuple(limits)


def limits_per_round(limits: tuple[CostLimit, ...], module: nn.Module, iterations: int) -> list[tuple[CostLimit, ...]]:
    """The limits of every round: equal relative steps from what ``module`` costs to what may stay in the end."""
    before = [limit.kept(module) for limit in limits] if iterations > 1 else [1.0] * len(limits)
    return [
        tuple(
            dataclasses.replace(limit, share=kept * (limit.share / kept) ** (number / iterations))
            for limit, kept in zip(limits, before, strict=True)
        )
        for number in range(1, iterations + 1)
    ]


def _counted(
    name: str, count: Callable[[nn.Module], float], whole: float, ratio: float | None, most: int | None
) -> CostLimit:
    if whole == 0:
        raise StageError(
            f"the model has no {name} to save", where="prune", fix="give another budget, or leave prune out"
        )
    shares = [share for share in (ratio, None if most is None else most / whole) if share is not None]
    return CostLimit(name, min(shares), lambda module: count(module) / whole)


def size_bytes(module: nn.Module) -> int:
    """Bytes of all weights, biases and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def _timed(model: Model, config: PruneConfig, target: Target | None) -> CostLimit:
    """Latency on a target (1 thread, batch 1), timed in turns with the original's, so that drift affects both."""
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
    return CostLimit("latency", min(shares), kept)


def load_session(target: Target, model: Model) -> Session:
    """The model, lowered and loaded on one thread; its file is removed again."""
    with tempfile.TemporaryDirectory() as folder:
        return target.load(target.lower(model, Path(folder), name="candidate"), threads=1)


def interleaved_medians(model: Model, sessions: tuple[Session, ...]) -> list[float]:
    """Median nanoseconds of one sample, per session."""
    inputs = tuple(tensor.numpy() for tensor in example_inputs(model.examples or model.inputs))

    def candidate(session: Session) -> Candidate:
        return Candidate(runtime=session.runtime, device=session.device, call=lambda: session.run(inputs))

    taken = interleave([candidate(session) for session in sessions], warmup_runs=20, rounds=30, runs=5)
    return [statistics.median(samples) for _, samples in taken]
