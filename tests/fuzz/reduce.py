"""Cutting a failing network down: fewer blocks, outputs and inputs, simpler options, as long as it fails alike.

Hypothesis shrinks what a test draws by the choices behind it, in hundreds of trials; here a trial takes seconds, so
it is the network itself that is cut, in some twenty.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tests.fuzz.findings import Finding
from tests.fuzz.networks import DoesNotFit, build
from tests.fuzz.spec import Block, Network
from tests.fuzz.worker import Worker


@dataclass
class Reduction:
    """A search for the smallest network with a finding.

    Attributes:
        trials: The most networks to try.
        end: When to stop, by `time.monotonic`.
    """

    finding: Finding
    worker: Worker
    trials: int
    end: float = math.inf

    def of(self, network: Network) -> tuple[Network, tuple[Finding, ...]]:
        """The smallest network found that fails alike, and its findings, that one first."""
        best, findings = network, (self.finding,)
        tried = {network.text()}
        again = True
        while again:
            again = False
            for candidate in smaller(best):
                if candidate.text() in tried or not _fits(candidate):
                    continue
                tried.add(candidate.text())
                if self.trials <= 0 or time.monotonic() > self.end:
                    return best, findings
                self.trials -= 1
                found = self._alike(candidate)
                if found:
                    best, findings, again = candidate, found, True
                    break
        return best, findings

    def _alike(self, network: Network) -> tuple[Finding, ...]:
        """All findings of a network, those like the one that is searched for first; none where there is no such."""
        found = self.worker.examine(network, _path_to(self.finding.oracle)).findings
        alike = [finding for finding in found if self._is_like(finding)]
        return (*alike, *(finding for finding in found if finding not in alike)) if alike else ()

    def _is_like(self, other: Finding) -> bool:
        mine = self.finding
        same = (other.oracle, other.outcome) == (mine.oracle, mine.outcome)
        return same and (other.outcome == "wrong" or other.cause == mine.cause)


def _path_to(oracle: str) -> tuple[str, ...]:
    """The oracles that have to be asked for one's answer: its own, ``onnx int8, onnxruntime`` being ``onnx``'s."""
    name = oracle.split()[0].removesuffix(",")
    name = {"listed": "program", "compare": "program", "build": "load"}.get(name, name)
    return ("program", name) if name in ("onnx", "tflite", "coreml") else (name,)


def smaller(network: Network) -> Iterator[Network]:
    """Networks that are smaller by one thing, those that lose most first."""
    first = len(network.inputs)
    for position in range(len(network.blocks) - 1):  # nothing behind a block
        kept = network.blocks[: position + 1]
        yield replace(network, blocks=kept, outputs=(first + position,), returns="tensor").without_unread()
    if len(network.outputs) > 1:
        for output in network.outputs:
            yield replace(network, outputs=(output,), returns="tensor").without_unread()
        if len(network.outputs) > 2:
            yield replace(network, outputs=network.outputs[:2]).without_unread()
    for position in range(len(network.blocks)):
        for read in dict.fromkeys(network.blocks[position].reads):
            yield _without(network, position, read)
    for name, simplest in (("settings", "fast"), ("names", "plain"), ("returns", "tensor"), ("seed", 0)):
        if getattr(network, name) != simplest and not (name == "returns" and len(network.outputs) > 1):
            yield replace(network, **{name: simplest})
    for position, block in enumerate(network.blocks):
        for name in block.options:
            options = {key: value for key, value in block.options.items() if key != name}
            changed = Block(block.kind, block.reads, options)
            yield replace(network, blocks=(*network.blocks[:position], changed, *network.blocks[position + 1 :]))


def _without(network: Network, position: int, instead: int) -> Network:
    """The network without one block; what read it reads one of the values that it read."""
    gone = len(network.inputs) + position

    def moved(index: int) -> int:
        index = instead if index == gone else index
        return index - (index > gone)

    blocks = [
        replace(block, reads=tuple(moved(read) for read in block.reads))
        for at, block in enumerate(network.blocks)
        if at != position
    ]
    outputs = tuple(moved(output) for output in network.outputs)
    return replace(network, blocks=tuple(blocks), outputs=outputs).without_unread()


def _fits(network: Network) -> bool:
    if not network.blocks:
        return False
    try:
        build(network)
    except DoesNotFit:
        return False
    return True
