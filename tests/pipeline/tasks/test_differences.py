"""Intervals of differences: against the definition, and by how often they hold what is true."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from pipeline.tasks.builtin.embedding import Neighbours
from pipeline.tasks.differences import (
    FEW_RESAMPLES,
    Difference,
    Paired,
    differences,
    samples_to_tell,
    tango_interval,
)
from pipeline.tasks.task import Task
from tests.tasks import task


def score(gained: int, lost: int, samples: int, delta: float) -> float:
    """Tango's statistic, with the nuisance share found by maximising the likelihood of the trinomial."""

    def unlikely(share: float) -> float:
        up, rest = share + delta, 1 - 2 * share - delta
        return -sum(
            count * math.log(max(p, 1e-300))
            for count, p in ((gained, up), (lost, share), (samples - gained - lost, rest))
        )

    best = minimize_scalar(
        unlikely, bounds=(max(0.0, -delta), (1 - delta) / 2), method="bounded", options={"xatol": 1e-12}
    ).x
    variance = samples * (2 * best + delta - delta**2)
    return (gained - lost - samples * delta) / math.sqrt(variance)


@pytest.mark.parametrize(("gained", "lost", "samples"), [(3, 9, 100), (12, 2, 50), (0, 4, 30), (40, 35, 200)])
def test_tango_interval_ends_where_the_score_statistic_says_so(gained: int, lost: int, samples: int) -> None:
    low, high = tango_interval(gained, lost, samples)
    assert score(gained, lost, samples, low) == pytest.approx(1.959964, abs=1e-3)
    assert score(gained, lost, samples, high) == pytest.approx(-1.959964, abs=1e-3)


def test_tango_interval_reaches_the_end_when_every_sample_is_lost() -> None:
    low, high = tango_interval(0, 30, 30)
    assert low == -1.0
    assert -1 < high < -0.7


def test_tango_interval_holds_the_true_difference_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        counts = rng.multinomial(80, [0.05, 0.12, 0.83])
        low, high = tango_interval(int(counts[0]), int(counts[1]), 80)
        held += low <= 0.05 - 0.12 <= high
    assert 0.92 <= held / 400 <= 0.98


def paired(made: Task, outputs: torch.Tensor, labels: torch.Tensor, batch: int) -> Paired:
    found = Paired(made, len(outputs), labelled=True)
    for start in range(0, len(outputs), batch):
        part = slice(start, start + batch)
        found.update((outputs[part],), (outputs[part],), (outputs[part],), labels[part])
    return found


def test_differences_of_shares_count_samples_that_changed_sides() -> None:
    labels = torch.arange(60) % 3
    before = torch.eye(3)[labels]
    after = before.clone()
    after[:6] = after[:6].roll(1, 1)
    made = task("classification", before)
    found = differences(paired(made, before, labels, 16), paired(made, after, labels, 60))
    top1 = next(each for each in found if each.metric == "top1")
    assert top1.value == -0.1
    assert (top1.low, top1.high) == pytest.approx(tango_interval(0, 6, 60))
    assert top1.p_value == pytest.approx(2 / 2**6)


def test_bootstrap_holds_the_hand_computed_error_of_a_mean() -> None:
    torch.manual_seed(0)
    labels = torch.zeros(400)
    before, noise = torch.zeros(400, 1), torch.randn(400, 1)
    made = task("regression", before)
    found = differences(paired(made, before, labels, 50), paired(made, noise, labels, 130))
    mae = next(each for each in found if each.metric == "mae")
    errors = noise.abs().numpy()
    assert mae.value == pytest.approx(errors.mean(), rel=1e-5)
    half = 1.96 * errors.std() / math.sqrt(400)
    assert mae.high - mae.value == pytest.approx(half, rel=0.25)
    assert mae.value - mae.low == pytest.approx(half, rel=0.25)


def test_sample_that_is_drawn_twice_is_no_neighbour_of_itself() -> None:
    torch.manual_seed(0)
    labels = torch.arange(60)  # each is the only one of its label
    vectors = torch.randn(60, 16)
    made = task("embedding", vectors)
    found = differences(paired(made, vectors, labels, 60), paired(made, vectors * 2, labels, 60))
    blocks = paired(made, vectors, labels, 60).blocks[made.metric("recall1").make]
    whole = copy.deepcopy(blocks[0])
    for block in (*blocks[:10], *blocks[:10]):
        whole.merge_state(block)
    assert whole.compute()["recall1"] == 0
    assert {each.value for each in found} == {0.0}


def test_more_samples_are_asked_for_where_the_interval_holds_the_limit() -> None:
    found = Difference(metric="top1", value=-0.005, low=-0.015, high=0.005, samples=400, method="")
    assert samples_to_tell(found, drop=0.005, allowed=0.01) == 1600
    assert samples_to_tell(found, drop=0.01, allowed=0.01) is None


@pytest.mark.parametrize(("gained", "lost", "allowed"), [(0, 0, 0.01), (2, 4, 0.01), (0, 6, 0.01)])
def test_number_of_samples_that_would_tell_is_where_tangos_interval_does(
    gained: int, lost: int, allowed: float
) -> None:
    low, high = tango_interval(gained, lost, 400)
    value = (gained - lost) / 400
    found = Difference(metric="top1", value=value, low=low, high=high, samples=400, method="", gained=gained, lost=lost)
    enough = samples_to_tell(found, drop=-value, allowed=allowed)
    assert enough is not None
    if lost == 0:
        assert enough == pytest.approx(1.959964**2 * (1 / allowed - 1), abs=2)  # z^2 / (n + z^2) = allowed
    for samples, tells in ((enough, True), (round(enough * 0.98), False)):
        low, high = tango_interval(gained * samples / 400, lost * samples / 400, samples)
        assert (-low <= allowed or -high > allowed) == tells


def test_metrics_of_one_object_are_computed_once_for_each_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(20) % 4
    vectors = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    made = task("embedding", vectors)
    computed = []
    compute = Neighbours.compute
    monkeypatch.setattr(Neighbours, "compute", lambda self: computed.append(self) or compute(self))
    original, first, second = (paired(made, vectors, labels, 20) for _ in range(3))
    found = [differences(original, first), differences(original, second)]
    assert found[0] == found[1]
    assert {each.metric for each in found[0]} > {"recall1", "auroc", "eer"}
    assert len(computed) == 3 * (FEW_RESAMPLES + 1)  # of three models, though there are three metrics and two pairs
