"""What the seeded tests leave out today, with the reason: faults that are known and not yet mended.

An entry that is removed here is tested from then on. Campaigns (`make fuzz`) leave nothing out unless ``--known`` asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tests.fuzz.blocks.catalogue import features
from tests.fuzz.spec import Network


@dataclass(frozen=True)
class KnownFault:
    """A fault.

    Attributes:
        features: Patterns of `tests.fuzz.blocks.features`; a network that has all of them is left out.
        oracles: The groups of oracles that it concerns: ``graph``, ``targets``, ``prune``.
        reason: What goes wrong, and where.
    """

    features: tuple[str, ...]
    oracles: tuple[str, ...]
    reason: str

    def is_in(self, network: Network) -> bool:
        found = features(network)
        return all(any(fnmatchcase(name, pattern) for name in found) for pattern in self.features)


def known_faults(groups: Sequence[str]) -> tuple[KnownFault, ...]:
    """The faults that concern these groups of oracles."""
    return tuple(fault for fault in KNOWN_FAULTS if set(fault.oracles) & set(groups))


KNOWN_FAULTS: tuple[KnownFault, ...] = (
    KnownFault(("recurrent*",), ("targets",), "unrolled recurrent layers: TFLite's conversion takes more than 10 s"),
)
