"""A model fuzzer: random small networks, each checked against independent oracles.

NNSmith (Liu et al., ASPLOS 2023, https://arxiv.org/abs/2207.13066) is the idea: networks that are valid by
construction, because every tensor's shape is tracked, and differential oracles. The blocks are idioms that people
write, not single operators, and weights and data look like trained ones: correlated, with heavy tails.

Run a campaign::

    make fuzz MINUTES=60
    python -m tests.fuzz --seed 1 --count 500 --oracles graph --minutes 10

``--oracles`` is ``graph`` (load, canonical graph, INT8 program), ``targets`` (these, and every file of every target),
``prune``, or ``all``. ``--known`` leaves out what `known_faults` lists, as the seeded tests do. A campaign does not
stop at a failure. It prints how many networks came out right, refused, wrong, in a traceback, an abort or a hang; the
kinds of failures, each with its smallest network; and how often each block and operator occurred. ``--json`` writes
the same to a file. Of several networks that are drawn, a campaign examines the one with most that was rare so far, so
that no time goes to near copies; numbers count what is drawn.

``--mutations`` puts faults that the product once had back, one by one, and says how long the fuzzer takes to find each.

Read a failure: it names the oracle, what it saw, and the network as one line of JSON. See that network again with::

    python -m tests.fuzz --network '{"inputs": ["image"], "blocks": [["conv2d", [0], {"padding": "same"}]], ...}'

which prints its blocks with their shapes, and every oracle's answer. In Python::

    from tests.fuzz.mutations import MUTATIONS, search
from tests.fuzz.networks import build
    from tests.fuzz.spec import Network
    built = build(Network.from_text('...'))   # built.module, built.inputs, built.samples

Add a block: write a function in ``tests/fuzz/blocks/`` that returns a module, under
``@kind(reads, gives, option=(simplest, other, ...))``. Every option is drawn from its tuple, and is cut down to the
first entry. A block that cannot be built on a shape, or does not run there, is left out of the network.

Add an oracle: a function from a `tests.fuzz.subject.Subject` to `Finding`s, listed in `tests.fuzz.oracles.ORACLES`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

from tests.fuzz.campaign import Campaign
from tests.fuzz.mutations import MUTATIONS, search
from tests.fuzz.networks import build
from tests.fuzz.oracles import GROUPS
from tests.fuzz.spec import Network
from tests.fuzz.worker import Worker

CANDIDATES = {"targets": 12, "all": 12}
"""Networks that are drawn for each that is examined, where it is not 8."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first network")
    parser.add_argument("--count", type=int, default=10**6, help="networks to examine")
    parser.add_argument("--minutes", type=float, help="stop after this time")
    parser.add_argument("--oracles", choices=tuple(GROUPS), default="all")
    parser.add_argument("--known", action="store_true", help="leave out what known_faults lists")
    parser.add_argument("--reduce", type=int, default=30, help="networks to try per kind when cutting down; 0 for none")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--mutations", action="store_true", help="put old faults back, and look for each")
    parser.add_argument("--network", help="examine this network, as a failure prints it, and nothing else")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if options.network is not None:
        return _look_at(Network.from_text(options.network), options.oracles)
    if options.mutations:
        return _look_for_mutations(options.seed)
    if options.count == 10**6 and options.minutes is None:
        parser.error("say when to stop: --count or --minutes")
    campaign = Campaign(
        options.seed,
        options.oracles,
        known=options.known,
        reduce=options.reduce,
        candidates=CANDIDATES.get(options.oracles, 8),
        say=lambda text: print(text, flush=True),
    )
    campaign.run(count=options.count, first=options.first, minutes=options.minutes)
    print(campaign.report())
    if options.json is not None:
        campaign.write(options.json)
    return 1 if campaign.faults else 0


def _look_for_mutations(seed: int) -> int:
    missed = 0
    for mutation in MUTATIONS:
        result = search(mutation, seed)
        print(result, flush=True)
        missed += result.found is None
    return 1 if missed else 0


def _look_at(network: Network, group: str) -> int:
    print(build(network))
    worker = Worker()
    try:
        examined = worker.examine(network, GROUPS[group])
    finally:
        worker.close()
    for finding in examined.findings:
        print(f"{finding.oracle}: {finding.outcome} {finding.cause}\n    {finding.detail}")
    return 1 if any(finding.is_fault for finding in examined.findings) else 0


if __name__ == "__main__":
    sys.exit(main())
