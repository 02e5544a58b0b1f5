"""Faults that the product once had, put back one by one: does the fuzzer still find each?

``python -m tests.fuzz --mutations`` prints how long each took. The product checks its own rewrites and files today, and
would undo or refuse what these break, so that check is switched off with each fault: the fuzzer has to find it alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from tests.fuzz.findings import Finding
from tests.fuzz.known_faults import known_faults
from tests.fuzz.novelty import Novelty
from tests.fuzz.oracles import GROUPS
from tests.fuzz.spec import Network
from tests.fuzz.strategies import networks
from tests.fuzz.uniform import for_each
from tests.fuzz.worker import Worker, serve


def _unchecked_rewrites() -> None:
    from pipeline.stages.quantize.graph import canonical

    canonical.difference_db = lambda *_: None


def _unchecked_files() -> None:
    from pipeline.stages.export import stage

    stage.verify = lambda exported, *_: exported


def shared_weights() -> None:
    """A batch norm folds into the weight itself, which another call of the layer shares."""
    from pipeline.stages.quantize.graph.forms import batch_norms
    from pipeline.stages.quantize.graph.nodes import set_tensor, tensor_of

    real = batch_norms._folded

    def in_place(graph: Any, norm: Any) -> Any:
        weight = norm.args[0].args[1]
        layer = real(graph, norm)
        set_tensor(graph, weight, tensor_of(graph, layer.args[1]))
        return layer

    batch_norms._folded = in_place
    _unchecked_rewrites()


def grouped_transposed() -> None:
    """A batch norm behind a grouped transposed convolution scales every group by the first group's factors."""
    from pipeline.stages.quantize.graph.capabilities import rule_of
    from pipeline.stages.quantize.graph.forms import batch_norms

    real = batch_norms._scaled

    def of_one_group(weight: Any, factor: Any, layer: Any) -> Any:
        if rule_of(layer).channel_axis == 0:
            return real(weight, factor, layer)
        return weight * factor[: weight.shape[1]].reshape(1, -1, *[1] * (weight.ndim - 2))

    batch_norms._scaled = of_one_group
    _unchecked_rewrites()


def masks_on_grids() -> None:
    """Masked scores are clamped into the grid of the others."""
    from pipeline.stages.quantize.graph import canonical, scheme

    scheme.masked_scores = lambda *_: {}
    canonical.masks_to_choices = lambda *_, **__: 0


def joined_grids() -> None:
    """A concatenation's grid is imposed on whatever it joins, and on their other readers."""
    from pipeline.stages.quantize.graph import scheme
    from pipeline.stages.quantize.ranges import precision

    scheme.is_cramped = lambda *_: False
    scheme.why_incompatible = lambda *_: {}
    precision.why_lost = lambda *_: {}


def nearest_by_half() -> None:
    """TFLite's own rule for the nearest pixel, which is not torch's."""
    from targets.tflite import corrections

    corrections.CORRECTIONS = tuple(each for each in corrections.CORRECTIONS if each is not corrections.nearest_pixels)
    _unchecked_files()


def ceil_mode() -> None:
    """onnxruntime's integer average pool divides the last window by its whole size."""
    from targets.onnx.passes.bound_windows import BoundWindows, ir

    BoundWindows.call = lambda _, model: ir.passes.PassResult(model, modified=False)
    _unchecked_files()


@dataclass(frozen=True)
class Mutation:
    """A fault to put back.

    Attributes:
        oracles: What is asked: for a target's fault, that target alone.
        minutes: The processor time in which it should be found; on a busy machine the clock says little.
        candidates: Networks that are drawn for each that is examined; see `Novelty`.
    """

    put_back: Callable[[], None]
    oracles: tuple[str, ...]
    minutes: float
    candidates: int


TARGETS_MINUTES = 20.0
MUTATIONS = (
    *(
        Mutation(fault, GROUPS["graph"], 5.0, 8)
        for fault in (shared_weights, grouped_transposed, masks_on_grids, joined_grids)
    ),
    Mutation(nearest_by_half, (*GROUPS["graph"], "tflite"), TARGETS_MINUTES, 12),
    Mutation(ceil_mode, (*GROUPS["graph"], "onnx"), TARGETS_MINUTES, 12),
)


@dataclass(frozen=True)
class Search:
    """What a search took, in seconds of the processor and of the clock; ``found`` is None where it found nothing."""

    name: str
    seconds: float
    clock: float
    networks: int
    found: tuple[Network, Finding] | None

    def __str__(self) -> str:
        took = f"{self.networks} networks in {self.seconds:.0f} s of processor time, {self.clock:.0f} s of the clock"
        if self.found is None:
            return f"{self.name}: NOT FOUND in {took}"
        network, finding = self.found
        shown = f"{finding.oracle}: {finding.cause} {finding.detail}"
        return f"{self.name}: found by {took}\n     {shown}\n     {network.text()}"


class _Found(BaseException):
    """Ends a search; not an Exception, which Hypothesis would try to shrink."""


def search(mutation: Mutation, seed: int) -> Search:
    """Examine networks with a fault put back until one shows it that is right without."""
    mutated, sound = Worker(serve=partial(serve_mutated, mutation.put_back.__name__)), Worker()
    novelty = Novelty(mutation.candidates)
    started, seconds, examined, drawn = time.monotonic(), 0.0, 0, 0
    found: tuple[Network, Finding] | None = None

    def examine(network: Network) -> None:
        nonlocal seconds, examined, drawn, found
        drawn += 1
        chosen = novelty.offer(drawn, network)
        if chosen is None:
            return
        if seconds > 60 * mutation.minutes:
            raise _Found
        result = mutated.examine(chosen[1], mutation.oracles)
        examined, seconds = examined + 1, seconds + result.seconds
        faults = [each for each in result.findings if each.is_fault]
        if faults:
            result = sound.examine(chosen[1], mutation.oracles)
            seconds += result.seconds
            if not any(each.is_fault for each in result.findings):
                found = chosen[1], faults[0]
                raise _Found

    try:
        concerned = "graph" if mutation.oracles == GROUPS["graph"] else "targets"
        for_each(networks(known_faults([concerned])), examine, seed=seed, count=10**6)
    except _Found:
        pass
    finally:
        mutated.close()
        sound.close()
    return Search(mutation.put_back.__name__, seconds, time.monotonic() - started, examined, found)


def serve_mutated(name: str, connection: Connection, log: str) -> None:
    """The child's loop with a fault put back."""
    next(each for each in MUTATIONS if each.put_back.__name__ == name).put_back()
    serve(connection, log)
