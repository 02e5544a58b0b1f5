from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.stages import benchmark
from tests.pipeline.execution.tiny import write_tiny


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny project's files, which no run changes."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder)
    return folder


@pytest.fixture
def tiny(written: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, its network importable, and latencies measured for an instant only."""
    monkeypatch.syspath_prepend(written)
    monkeypatch.setattr(benchmark, "SECONDS_PER_CANDIDATE", 0.01)
    return written
