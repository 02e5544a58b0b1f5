from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.report.model import Report, read_report

FROZEN = Path(__file__).with_name("report_1_0.json")


@pytest.fixture(scope="session")
def frozen_path() -> Path:
    """The report of format 1.0 that must load for ever. Its figures are made up; it says so in its names."""
    return FROZEN


@pytest.fixture(scope="session")
def report(frozen_path: Path) -> Report:
    return read_report(frozen_path)
