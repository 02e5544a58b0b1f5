"""Random networks that must come out right, or be refused with a reason: the same ones in every run.

What `known_faults` lists is left out; an entry that goes from there is tested here from then on. A failure prints the
smallest network found, as text; ``python -m tests.fuzz --network '…'`` looks at it closely.
"""

from __future__ import annotations

import pytest

from tests.fuzz.campaign import Campaign


def assert_nothing_found(group: str, *, seed: int, count: int) -> None:
    campaign = Campaign(seed=seed, group=group, known=True, reduce=20)
    campaign.run(count=count)
    assert campaign.networks == count
    assert not campaign.faults, campaign.report()


def test_a_few_networks_through_the_graph_oracles() -> None:
    assert_nothing_found("graph", seed=1, count=4)


@pytest.mark.slow
def test_networks_through_the_graph_oracles() -> None:
    assert_nothing_found("graph", seed=2, count=30)


@pytest.mark.slow
def test_networks_through_the_targets() -> None:
    assert_nothing_found("targets", seed=3, count=3)


@pytest.mark.slow
def test_networks_through_pruning() -> None:
    assert_nothing_found("prune", seed=4, count=12)
