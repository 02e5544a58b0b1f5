"""The roofline's arithmetic, the committed constants, and what they are allowed to claim."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import TensorSpec
from pipeline.recipe import CoremlConfig
from pipeline.target import Estimated, Skipped
from targets.coreml import CoremlTarget
from targets.coreml.neural_engine import estimates
from targets.coreml.neural_engine.fit import (
    PRIOR,
    PublishedLatency,
    fit,
    median_error,
    predicted,
    read_published,
    spearman,
)
from targets.coreml.neural_engine.latency import CHIP_OF, CHIPS, Chip, fitted, seconds, workload
from targets.coreml.neural_engine.networks import read_operators
from targets.coreml.neural_engine.work import Work
from tests.networks.structures import build
from tests.targets.coreml.neural_engine.test_work import program_of
from tests.targets.coreml.programs import HandQuantized, model_of

CHIP = Chip(name="X", fp16_tops=10, int8_speedup=2, bandwidth_gb_s=50, sources=("https://example.org",))
CONSTANTS = PRIOR.model_copy(
    update={"weight_share": 0.5, "spill_share": 0.5, "operator_us": 2.0, "call_us": 100.0, "pace": {"X": 1.5}}
)


def microseconds(*found: Work) -> float:
    return 1e6 * seconds(workload(Counter(found)), CHIP, CONSTANTS)


def test_seconds_follow_the_formula_when_compute_bounds_an_operator() -> None:
    # 1e9 MACs at half of 10 TOPS: 400 us. 1e5 FP16 activations at 200 GB/s: 1 us. Operator 2 us, call 100 us.
    assert microseconds(Work("conv", 10**9, 10**3, 10**5)) == pytest.approx(1.5 * (400 + 1 + 2 + 100))


def test_seconds_follow_the_formula_when_weights_bound_an_operator() -> None:
    # 1e6 FP16 weights at half of 50 GB/s: 80 us, against 2 us of compute.
    assert microseconds(Work("linear", 3 * 10**6, 10**6, 0)) == pytest.approx(1.5 * (80 + 2 + 100))


def test_seconds_follow_the_formula_when_activations_spill() -> None:
    # 2 MiB stay on chip; 1e6 bytes more pass memory at 25 GB/s: 40 us, against 15 us on chip at 200 GB/s.
    elements = (2 * 2**20 + 10**6) // 2
    assert microseconds(Work("layout", 0, 0, elements)) == pytest.approx(1.5 * (40 + 2 + 100))


def test_int8_halves_compute_and_activations_when_both_operands_are_bytes() -> None:
    fp16 = microseconds(Work("conv", 10**9, 10**3, 10**5)) / 1.5 - 102
    int8 = microseconds(Work("conv", 10**9, 10**3, 10**5, 8, 8)) / 1.5 - 102
    weights_only = microseconds(Work("conv", 10**9, 10**3, 10**5, 8, 16)) / 1.5 - 102
    assert int8 == pytest.approx(fp16 / 2)
    assert weights_only == pytest.approx(fp16)


@given(st.integers(0, 10**10), st.integers(0, 10**8), st.integers(0, 10**8), st.integers(1, 50))
def test_seconds_grow_with_every_kind_of_work(macs: int, weights: int, activations: int, count: int) -> None:
    base = Counter({Work("conv", macs, weights, activations): count})
    time = seconds(workload(base), CHIP, CONSTANTS)
    for more in (Work("conv", 2 * macs, weights, activations), Work("conv", macs, 2 * weights, activations)):
        assert seconds(workload(Counter({more: count})), CHIP, CONSTANTS) >= time
    assert seconds(workload(base + Counter({Work("layout", 0, 0, 1): 1})), CHIP, CONSTANTS) > time


def test_fit_recovers_the_constants_when_latencies_come_from_them() -> None:
    operators = {
        "compute": Counter({Work("conv", 10**9, 10**3, 10**4): 20}),
        "moving": Counter({Work("elementwise", 0, 0, 10**6): 50}),
        "calls": Counter({Work("layout", 0, 0, 1): 1}),
    }
    truth = PRIOR.model_copy(update={"efficiency": PRIOR.efficiency | {"conv": 0.8}, "call_us": 200.0})
    rows = [PublishedLatency(name, "fp16", "A17 Pro", "", 1.0, "") for name in operators] * 20
    published = predicted(rows, operators, truth)
    rows = [
        PublishedLatency(row.model, "fp16", row.chip, "", time, "") for row, time in zip(rows, published, strict=True)
    ]

    found = fit(rows, operators)

    assert median_error(predicted(rows, operators, found), published) < 0.05
    assert found.efficiency["conv"] == pytest.approx(0.8, rel=0.15)
    assert found.call_us == pytest.approx(200, rel=0.15)
    assert found.efficiency["matmul"] == pytest.approx(PRIOR.efficiency["matmul"], rel=1e-3)  # no row says otherwise


def test_median_error_and_spearman_are_what_a_hand_counts() -> None:
    found, published = np.array([1.1, 1.0, 3.0, 8.0]), np.array([1.0, 2.0, 3.0, 4.0])
    assert median_error(found, published) == pytest.approx(0.3)  # 0.1, 0.5, 0, 1
    assert spearman(found, published) == pytest.approx(0.8)  # ranks 2 1 3 4 against 1 2 3 4: 1 - 6*2/60


def test_held_out_models_are_never_fitted_when_the_table_is_split() -> None:
    rows = read_published()
    test = {row.model for row in rows if row.test}

    assert test.isdisjoint({row.model for row in rows if not row.test})
    assert {  # fixed before the first fit
        *("ConvNeXt-T", "DeiT-S", "EfficientNet-B3", "FastViT-MA36", "FastViT-SA12", "FastViT-SA12 backbone"),
        *("MobileNetV3 backbone", "MobileNetV3-small", "MobileOne-S0", "MobileOne-S1", "MobileViTv2-1.0"),
        *("MobileViTv2-2.0", "64x conv1x1 512ch 64x64", "128x conv1x1 512ch 64x64"),
    } == test


def test_published_rows_are_sourced_and_usable() -> None:
    rows, operators = read_published(), read_operators()

    assert all(row.source.startswith("https://") and row.latency_ms > 0 for row in rows)
    assert {row.chip for row in rows} <= CHIPS.keys()
    assert {row.model for row in rows} == operators.keys()


def test_committed_errors_are_those_of_the_committed_constants() -> None:
    test = [row for row in read_published() if row.test]
    found, published = predicted(test, read_operators(), fitted()), np.array([row.latency_ms for row in test])

    assert len(test) == fitted().test_rows
    assert median_error(found, published) == pytest.approx(fitted().test_error, abs=0.002)
    assert spearman(found, published) == pytest.approx(fitted().test_spearman, abs=0.002)


def test_constants_are_physical() -> None:
    values = fitted()
    assert all(0 < share <= 1 for share in (*values.efficiency.values(), values.weight_share, values.spill_share))
    assert all(0.5 < pace < 2 for pace in values.pace.values())
    assert all(source.startswith("https://") for chip in CHIPS.values() for source in chip.sources)


def test_estimates_name_every_device_and_their_method_when_a_program_is_quantized(tmp_path: Path) -> None:
    target = CoremlTarget(CoremlConfig(batch_sizes=(1, 8)))
    lowered = target.lower(model_of(HandQuantized(), quantized=True), tmp_path, name="net")

    eight = estimates(lowered.path, batch_size=8)
    one = [record for record in target.estimates(lowered) if record.device in CHIP_OF]

    assert [record.device for record in one] == list(CHIP_OF)
    for single, batch in zip(one, eight, strict=True):
        assert isinstance(single, Estimated)
        assert isinstance(batch, Estimated)
        assert "held-out" in single.method
        assert single.placement == target.placement(lowered)
        assert single.figures["macs"] == 8 * 26 * 26 * 9 + 10 * 8
        assert single.median_ns < batch.median_ns < 8 * single.median_ns


def test_estimates_are_skipped_when_a_program_computes_in_fp32(tmp_path: Path) -> None:
    program = program_of(build("mobile"), TensorSpec(name="image", shape=(1, 12, 12)), tmp_path)

    for skipped in estimates(program):
        assert isinstance(skipped, Skipped)
        assert "FP32" in skipped.reason


def test_estimates_are_skipped_when_a_loop_hides_the_work() -> None:
    package = Path(__file__).parents[1] / "packages" / "tensorflow_loop.mlpackage"

    for skipped in estimates(package):
        assert isinstance(skipped, Skipped)
        assert "while_loop" in skipped.reason
