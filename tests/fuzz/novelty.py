"""Of several networks, the one with most that was rare so far: drawing one costs milliseconds, examining it seconds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations

from tests.fuzz.blocks.catalogue import features
from tests.fuzz.spec import Network


@dataclass
class Novelty:
    """Chooses by features: blocks, their options, inputs. What is chosen depends on the networks offered alone.

    Attributes:
        candidates: Networks of which one is chosen.
    """

    candidates: int = 1
    _seen: Counter[str] = field(default_factory=Counter)
    _waiting: list[tuple[int, Network]] = field(default_factory=list)

    def offer(self, number: int, network: Network) -> tuple[int, Network] | None:
        """Take a network; with the last of the candidates, give back the chosen one and its number."""
        self._waiting.append((number, network))
        if len(self._waiting) < self.candidates:
            return None
        number, network = max(self._waiting, key=lambda each: self._rarity(each[1]))
        self._waiting.clear()
        self._seen.update(_aspects(network))
        return number, network

    def _rarity(self, network: Network) -> float:
        return sum(1 / (1 + self._seen[aspect]) ** 2 for aspect in _aspects(network))


def _aspects(network: Network) -> set[str]:
    """Features, and pairs of the options of one block: many a fault needs two that are not the simplest."""
    pairs = (
        f"{block.kind} {one} {other}"
        for block in network.blocks
        for one, other in combinations(sorted(map(str, block.options.items())), 2)
    )
    return {*features(network), *pairs}
