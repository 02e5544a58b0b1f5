"""A few of the moments, limits and damages that the long campaigns (``make torture``) draw by the hundred."""

from __future__ import annotations

import pytest

from tests.torture import disk, kills, store


@pytest.mark.slow
def test_run_ends_in_the_same_report_when_it_was_killed_at_random_moments() -> None:
    outcome = kills.torture(3, seed=5)
    assert outcome.failures == []
    assert outcome.runs == 1


@pytest.mark.slow
def test_run_names_what_it_cannot_write_and_goes_on_when_the_disk_is_full() -> None:
    refused, failures = disk.torture(2)
    assert failures == []
    assert refused >= 1


@pytest.mark.slow
def test_run_uses_nothing_damaged_when_its_store_was_changed() -> None:
    assert store.torture(5, seed=3) == []


@pytest.mark.slow
def test_two_runs_share_a_store_when_they_start_together() -> None:
    assert store.race(1) == []
