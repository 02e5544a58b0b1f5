"""The committed sample is a real run: its figures must follow from its own raw samples and from each other."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from pipeline.report.model import Report, read_report
from pipeline.report.noise import all_latencies
from pipeline.report.schema import json_schema
from pipeline.target import Measured

SAMPLE = Path(__file__).parents[3] / "reports" / "sample" / "report.json"
DETECTION = SAMPLE.parent / "detection" / "report.json"


@pytest.fixture(scope="module", params=[SAMPLE, DETECTION], ids=["classification", "detection"])
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture(scope="module")
def sample(path: Path) -> Report:
    return read_report(path)


def by_threads(latencies: tuple[object, ...]) -> dict[int, Measured]:
    return {latency.threads: latency for latency in latencies if isinstance(latency, Measured)}


def test_sample_validates_against_the_published_schema_when_checked_by_jsonschema(path: Path) -> None:
    jsonschema.validate(json.loads(path.read_text()), json_schema(), cls=jsonschema.Draft202012Validator)


def test_statistics_follow_from_the_raw_samples_when_numpy_computes_them(sample: Report) -> None:
    found = [latency for _, latency in all_latencies(sample) if isinstance(latency, Measured)]
    assert len(found) >= 10  # the original, and FP32 and INT8 of two runtimes, each on one thread and on all cores
    for latency in found:
        expected = np.percentile(latency.samples_ns, [50, 90, 99])
        assert (latency.median_ns, latency.p90_ns, latency.p99_ns) == pytest.approx(
            expected, abs=0.501
        )  # whole nanoseconds
        assert len(latency.warmup_ns) > 0


def test_speedups_are_ratios_of_medians_when_both_are_in_the_report(sample: Report) -> None:
    original = by_threads(sample.original.latency)
    for target in sample.targets:
        fp32, optimized = by_threads(target.fp32_latency), by_threads(target.latency)
        for threads, latency in optimized.items():
            ratio = original[threads].median_ns / latency.median_ns
            assert latency.speedup_vs_original == pytest.approx(ratio)
            same_runtime = fp32[threads].median_ns / latency.median_ns
            assert latency.speedup_vs_fp32_same_runtime == pytest.approx(same_runtime)


def test_budget_is_met_exactly_where_the_drop_is_within_it_when_recomputed(sample: Report) -> None:
    assert sample.budget is not None
    metric, budget = sample.budget.metric, sample.budget
    judged = {target.target: target.metrics[metric] for target in sample.targets if target.metrics}
    baseline = sample.original.metrics[metric]
    assert judged
    assert budget.met == {name: baseline - value <= budget.max_drop + 1e-9 for name, value in judged.items()}


def test_accuracies_are_counts_of_samples_when_multiplied_out() -> None:
    sample = read_report(SAMPLE)
    count = sample.data["evaluation"].samples
    for metrics in (sample.original.metrics, *(target.metrics or {} for target in sample.targets)):
        for value in metrics.values():
            assert value * count == pytest.approx(round(value * count), abs=1e-6)


def test_detections_sample_shows_boxes_of_every_model_beside_the_labels() -> None:
    sample = read_report(DETECTION)
    assert sum(path.stat().st_size for path in DETECTION.parent.iterdir()) < 600_000
    assert len(sample.samples) == 6
    for shown in sample.samples:
        assert [view.title.split(",")[0] for view in shown.views] == ["label", "original", "INT8"]
        for box in (box for view in shown.views for box in view.boxes):
            x1, y1, x2, y2 = box.corners
            assert 0 <= x1 < x2 <= shown.width
            assert 0 <= y1 < y2 <= shown.height


def test_sample_names_no_machine_when_read_as_text(path: Path) -> None:
    assert not any(word in path.read_text() for word in ("/home/", "/root/", "/tmp/", "/work/", "localhost"))
