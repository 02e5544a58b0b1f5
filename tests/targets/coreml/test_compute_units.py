"""Timing of a package with each choice of compute units."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from targets.coreml import CoremlTarget, compute_units
from tests.targets.coreml.programs import HandQuantized, model_of


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
