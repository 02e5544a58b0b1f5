"""A campaign: many networks, put to oracles one after the other; failures grouped by kind and cut down."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.stages.quantize.graph.capabilities import RULE_OF
from tests.fuzz.blocks.catalogue import KINDS, features
from tests.fuzz.findings import FAULTS, OUTCOMES, Finding
from tests.fuzz.known_faults import known_faults
from tests.fuzz.novelty import Novelty
from tests.fuzz.oracles import GROUPS
from tests.fuzz.reduce import Reduction
from tests.fuzz.spec import Network
from tests.fuzz.strategies import networks
from tests.fuzz.uniform import for_each
from tests.fuzz.worker import Worker

Say = Callable[[str], None]


class Enough(BaseException):
    """Time is up; not an Exception, which Hypothesis would try to shrink."""


@dataclass
class FailureKind:
    """Failures alike: of one oracle, one outcome and one cause, which the same blocks bring about.

    Attributes:
        smallest: The smallest network that shows it.
        blocks: What that network has in it; a network that has all of it, and fails alike, is one more of the kind.
        seen: How many networks failed so.
    """

    finding: Finding
    smallest: Network
    blocks: Counter[str]
    index: int
    seen: int = 1

    def explains(self, finding: Finding, network: Network) -> bool:
        if (finding.oracle, finding.outcome, finding.cause) != (
            self.finding.oracle,
            self.finding.outcome,
            self.finding.cause,
        ):
            return False
        return finding.outcome in ("traceback", "no reason") or not self.blocks - essentials(network)


def essentials(network: Network) -> Counter[str]:
    """The blocks with the options that are not the simplest, and what of the interface is not."""
    found: Counter[str] = Counter()
    for block in network.blocks:
        found[block.kind] += 1
        choices = KINDS[block.kind].choices
        found.update(f"{block.kind}({name}={value})" for name, value in block.options.items() if name in choices)
    found.update(
        name for name in features(network) if name in ("one output twice", "input returned", "several outputs")
    )
    if network.names != "plain":
        found[f"names {network.names}"] += 1
    return found


@dataclass
class Campaign:
    """Counts, and the kinds of failures.

    Attributes:
        seed: Networks are known by it and their number.
        group: A key of `GROUPS`.
        reduce: The most networks to try for each new kind of failure.
        candidates: Networks that are drawn for each that is examined; see `Novelty`.
    """

    seed: int
    group: str
    known: bool = False
    reduce: int = 30
    candidates: int = 1
    say: Say = print
    outcomes: Counter[str] = field(default_factory=Counter)
    by_oracle: dict[str, Counter[str]] = field(default_factory=dict)
    features: Counter[str] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    kinds: list[FailureKind] = field(default_factory=list)
    networks: int = 0
    started: float = field(default_factory=time.monotonic)
    unverified: int = 0
    end: float = math.inf

    def run(self, *, count: int, first: int = 0, minutes: float | None = None) -> None:
        """Examine ``count`` networks of those from number ``first`` on, or as many as ``minutes`` allow."""
        worker, novelty = Worker(), Novelty(self.candidates)
        self.end = math.inf if minutes is None else time.monotonic() + 60 * minutes
        number = first - 1

        def examine(network: Network) -> None:
            nonlocal number
            number += 1
            if time.monotonic() > self.end:
                raise Enough
            if (chosen := novelty.offer(number, network)) is not None:
                self._examine(chosen[1], chosen[0], worker)

        try:
            excluded = known_faults([self.group]) if self.known else ()
            for_each(networks(excluded), examine, seed=self.seed, first=first, count=count * self.candidates)
        except (Enough, KeyboardInterrupt):
            pass
        finally:
            worker.close()

    def _examine(self, network: Network, number: int, worker: Worker) -> None:
        examined = worker.examine(network, GROUPS[self.group])
        self.networks += 1
        self.features.update(set(features(network)))
        self.operators.update(examined.operators)
        worst = max((OUTCOMES.index(finding.outcome) for finding in examined.findings), default=0)
        self.outcomes[OUTCOMES[worst]] += 1
        for finding in examined.findings:
            self.by_oracle.setdefault(finding.oracle, Counter())[finding.outcome] += 1
            if finding.outcome == "refused":
                self.refusals[f"{finding.oracle}: {finding.cause}"] += 1
            self.unverified += finding.detail.startswith("unverified")
            if finding.is_fault:
                self._sort(finding, network, number, worker)
        if self.networks % 25 == 0:
            rate = self.networks / (time.monotonic() - self.started)
            self.say(f"{self.networks} networks, {rate:.1f}/s, {dict(self.outcomes)}, {len(self.kinds)} kinds")

    def _sort(self, finding: Finding, network: Network, number: int, worker: Worker) -> None:
        """Count a failure to its kind; or cut it down, and make it and what else fails there new kinds."""
        if self._count(finding, network, number):
            return
        trials = (
            self.reduce // 3 if finding.outcome in ("abort", "hang") else self.reduce
        )  # these need a new process each
        smallest, findings = Reduction(finding, worker, trials, self.end).of(network)
        for found in findings:
            if found.is_fault and not self._count(found, smallest, number):
                self.kinds.append(kind := FailureKind(found, smallest, essentials(smallest), number))
                self.say(f"network {self.seed}:{number}: {describe(kind)}")

    def _count(self, finding: Finding, network: Network, number: int) -> bool:
        """Whether a failure is of a kind that is known, which counts it then."""
        for kind in self.kinds:
            if kind.explains(finding, network):
                kind.seen += 1
                if network.size < kind.smallest.size:
                    kind.smallest, kind.index, kind.finding = network, number, finding
                return True
        return False

    def report(self) -> str:
        """What a person reads at the end."""
        seconds = time.monotonic() - self.started
        lines = [
            f"{self.networks} networks of seed {self.seed} through the oracles {self.group} in {seconds / 60:.1f} min",
            ", ".join(f"{outcome} {self.outcomes[outcome]}" for outcome in OUTCOMES),
            "",
        ]
        for oracle, counts in sorted(self.by_oracle.items()):
            lines.append(f"  {oracle}: " + ", ".join(f"{o} {counts[o]}" for o in OUTCOMES if counts[o]))
        lines += ["", f"{len(self.kinds)} kinds of failures:"]
        for number, kind in enumerate(sorted(self.kinds, key=lambda kind: -kind.seen), 1):
            lines.append(f"{number}. seen {kind.seen} times; {describe(kind)}")
        lines += ["", "refusals:", *(f"  {count} x {text}" for text, count in self.refusals.most_common())]
        counts = ((self.features[name], name) for name in KINDS)
        lines += ["", "blocks: " + ", ".join(f"{name} {count}" for count, name in sorted(counts, reverse=True))]
        lines += ["operators: " + ", ".join(f"{name} {count}" for name, count in self.operators.most_common())]
        lines += ["operators of the capability table in no network: " + (", ".join(self.missing) or "none")]
        return "\n".join(lines)

    @property
    def missing(self) -> list[str]:
        """Operators that quantize has a rule for, and no network had."""
        return sorted({str(operator) for operator in RULE_OF} - set(self.operators))

    def to_json(self) -> dict[str, Any]:
        """The same for programs; `operators` counts networks per operator of the canonical graph."""
        return {
            "seed": self.seed,
            "oracles": self.group,
            "known_faults_left_out": self.known,
            "networks": self.networks,
            "seconds": time.monotonic() - self.started,
            "outcomes": {outcome: self.outcomes[outcome] for outcome in OUTCOMES},
            "by_oracle": self.by_oracle,
            "unverified_prunings": self.unverified,
            "failures": [
                {
                    "oracle": kind.finding.oracle,
                    "outcome": kind.finding.outcome,
                    "cause": kind.finding.cause,
                    "detail": kind.finding.detail,
                    "seen": kind.seen,
                    "number": kind.index,
                    "network": kind.smallest.text(),
                }
                for kind in self.kinds
            ],
            "refusals": self.refusals,
            "features": self.features,
            "operators": self.operators,
            "operators_missing": self.missing,
        }

    @property
    def faults(self) -> int:
        return sum(self.outcomes[outcome] for outcome in FAULTS)

    def write(self, path: Path) -> None:
        """Write `to_json`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), indent=1))


def describe(kind: FailureKind) -> str:
    """Oracle, outcome, cause, and the network to see it again with."""
    finding = kind.finding
    return (
        f"{finding.oracle}: {finding.outcome}: {finding.cause}\n"
        f"     {' '.join(finding.detail.split())[:400]}\n     {kind.smallest.text()}"
    )
