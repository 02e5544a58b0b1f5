"""Timing of a package with each choice of compute units."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from targets.coreml import CoremlTarget, compute_units
from tests.targets.coreml.programs import HandQuantized, model_of


def test_alternate_takes_turns_and_keeps_every_sample() -> None:
    order: list[str] = []
    taken = compute_units.alternate([lambda: order.append("a"), lambda: order.append("b")], rounds=2, runs=3)
    warmup = compute_units.WARMUP_RUNS
    assert "".join(order) == "a" * warmup + "b" * warmup + ("a" * 4 + "b" * 4) * 2
    assert [(len(first), len(rest)) for first, rest in taken] == [(warmup, 6)] * 2
    assert all(sample > 0 for _, rest in taken for sample in rest)


@pytest.mark.skipif(sys.platform == "darwin", reason="on macOS it is measured")
def test_latency_is_skipped_with_the_reason_when_core_ml_is_not_here(tmp_path: Path) -> None:
    target = CoremlTarget()
    skipped, *_ = target.estimates(target.lower(model_of(HandQuantized(), quantized=True), tmp_path, name="m"))
    assert (skipped.kind, skipped.runtime) == ("skipped", "Core ML")


@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML runs only on macOS")
def test_every_compute_unit_is_measured_on_macos(tmp_path: Path) -> None:
    lowered = CoremlTarget().lower(model_of(HandQuantized(), quantized=True), tmp_path, name="m")
    records = compute_units.measure(lowered)
    assert [record.device.rsplit(" ", 1)[-1] for record in records] == list(compute_units.UNITS)
    assert all(record.median_ns > 0 for record in records)
