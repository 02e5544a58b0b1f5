"""Latency on Apple devices, estimated by a roofline per operator whose efficiencies were fitted to published figures.

An operator takes as long as the slower of two: the engine, which multiplies and moves activations on chip, and memory,
from which weights stream, and activations that do not fit on chip. Each operator and each call add a fixed time:

    t = pace · (call + Σ (operator + max(2·macs / (peak · efficiency) + activation bytes / on-chip rate,
                                         weight bytes / (bandwidth · share) + spilled bytes / (bandwidth · share))))

The rated figures below are published; the efficiencies are in ``fitted.json`` and come from
``python -m targets.coreml.neural_engine.fit``. The roofline: Williams, Waterman and Patterson,
https://doi.org/10.1145/1498765.1498785.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from pipeline.core import Record
from pipeline.target import Estimated, Placement, Skipped
from targets.coreml.interpreter.package import read_package
from targets.coreml.interpreter.program import Program, read_program
from targets.coreml.neural_engine.rules import placement
from targets.coreml.neural_engine.work import UNCOUNTED, OperatorKind, Work, works

Array = np.ndarray[Any, np.dtype[Any]]

FITTED = Path(__file__).parent / "fitted.json"
RATED = "https://github.com/hollance/neural-engine/blob/d0bb5305/docs/supported-devices.md"
WORKING_SET_BYTES = 2 << 20
"""Activations beyond this size are streamed from memory, as measured on the M1
(https://ane-guide.readthedocs.io/en/latest/part-3-performance/09-roofline.html)."""


class Chip(Record):
    """What is published about a chip's Neural Engine.

    Attributes:
        fp16_tops: Rated FP16 operations per second, in 1e12; two per multiply-accumulate.
        int8_speedup: Rated INT8 operations per FP16 operation.
        bandwidth_gb_s: Memory bandwidth in 1e9 bytes per second.
    """

    name: str
    fp16_tops: float
    int8_speedup: float = 1.0
    bandwidth_gb_s: float
    sources: tuple[str, ...]


_INT8 = "https://github.com/apple/coremltools/blob/e0e2f42b/docs-guides/source/opt-quantization-perf.md"
"""Says that INT8 activations with INT8 weights compute faster than FP16 from the A17 Pro and the M4 on."""

CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="A14",
            fp16_tops=11,
            bandwidth_gb_s=34.1,
            sources=(RATED, "https://topcpu.net/en/soc-c/mediatek-helio-p65-vs-apple-a14-bionic"),
        ),
        Chip(
            name="A15",
            fp16_tops=15.8,
            bandwidth_gb_s=34.1,
            sources=(
                "https://machinelearning.apple.com/research/neural-engine-transformers",
                "https://askgeek.io/en/cpus/Apple/A15-Bionic",
            ),
        ),
        Chip(
            name="A16",
            fp16_tops=17,
            bandwidth_gb_s=51.2,
            sources=(RATED, "https://askgeek.io/de/cpus/Apple/A16-Bionic"),
        ),
        Chip(  # rated 35 TOPS, taken as INT8; the same kind of memory as the A16
            name="A17 Pro",
            fp16_tops=17.5,
            int8_speedup=2.0,
            bandwidth_gb_s=51.2,
            sources=(
                RATED,
                _INT8,
                "https://www.neowin.net/news/iphone-15-pros-a17-chip-reportedly-features-6-cpu-and-6-gpu-cores-with-6gb-ram/",
            ),
        ),
        Chip(  # 17 % more bandwidth than the A17 Pro, as Apple claims
            name="A18 Pro",
            fp16_tops=17.5,
            int8_speedup=2.0,
            bandwidth_gb_s=59.9,
            sources=(
                RATED,
                _INT8,
                "https://www.gadgets360.com/mobiles/news/apple-iphone-16-series-a18-pro-chipset-details-6530448",
            ),
        ),
        Chip(  # Apple's M2 has 100 GB/s, "50 percent more" than this
            name="M1",
            fp16_tops=11,
            bandwidth_gb_s=66.7,
            sources=(
                RATED,
                "https://www.macrumors.com/2022/06/06/apple-announces-m2-chip-with-support-for-up-to-24gb-memory/",
            ),
        ),
        Chip(
            name="M2",
            fp16_tops=15.8,
            bandwidth_gb_s=100,
            sources=(
                RATED,
                "https://www.macrumors.com/2022/06/06/apple-announces-m2-chip-with-support-for-up-to-24gb-memory/",
            ),
        ),
        Chip(
            name="M3",
            fp16_tops=18,
            bandwidth_gb_s=100,
            sources=("https://en.wikipedia.org/wiki/Neural_Engine", "https://gizmohopper.com/glossary/apple-m3"),
        ),
        Chip(  # rated 38 TOPS as INT8; 18.6 FP16 and 35.1 INT8 measured
            name="M4",
            fp16_tops=19,
            int8_speedup=2.0,
            bandwidth_gb_s=120,
            sources=(
                RATED,
                "https://www.engadget.com/apples-m4-chip-arrives-with-a-big-focus-on-ai-142448428.html",
                "https://github.com/maderix/ANE/blob/d91c9845/README.md",
                _INT8,
            ),
        ),
    )
}

CHIP_OF = {
    "iPhone 13 (A15)": "A15",
    "iPhone 14 Pro (A16)": "A16",
    "iPhone 15 Pro (A17 Pro)": "A17 Pro",
    "iPhone 16 Pro (A18 Pro)": "A18 Pro",
    "MacBook Air M2": "M2",
    "iPad Pro or Mac with M4": "M4",
}
"""Devices that a report names, and their chips."""


class Fitted(Record):
    """What was fitted to published latencies.

    Attributes:
        efficiency: Reached share of the rated operations, by kind of operator.
        activation_gb_s: Rate at which activations move on chip, by kind, for 10 rated FP16 TOPS.
        weight_share: Reached share of the memory bandwidth while weights stream in.
        spill_share: The same while activations stream.
        operator_us: Fixed time of an operator, in microseconds; shrinks with the rated operations.
        call_us: Fixed time of a call, in microseconds.
        pace: Time on a chip relative to what its rated figures give; 1 where no figure was in the fit.
        rows: Published latencies in the fit.
        test_rows: Published latencies held out.
        test_error: Median absolute relative error on those.
        test_spearman: Rank correlation on those.
    """

    efficiency: dict[str, float]
    activation_gb_s: dict[str, float]
    weight_share: float = Field(gt=0)
    spill_share: float = Field(gt=0)
    operator_us: float
    call_us: float
    pace: dict[str, float]
    rows: int = 0
    test_rows: int = 0
    test_error: float = 0.0
    test_spearman: float = 0.0


@dataclass(frozen=True, slots=True)
class Workload:
    """A program's operators as columns, one row per distinct `Work`. Sizes in bytes."""

    count: Array
    kind: tuple[OperatorKind, ...]
    macs: Array
    weights: Array
    activations: Array
    integer: Array


def workload(found: Counter[Work]) -> Workload:
    """The columns of a program's operators."""
    rows = list(found)
    return Workload(
        count=np.array([found[work] for work in rows], float),
        kind=tuple(work.kind for work in rows),
        macs=np.array([work.macs for work in rows], float),
        weights=np.array([work.weights * work.weight_bits / 8 for work in rows]),
        activations=np.array([work.activations * work.activation_bits / 8 for work in rows]),
        integer=np.array([work.weight_bits == 8 and work.activation_bits == 8 for work in rows]),
    )


def seconds(load: Workload, chip: Chip, fitted: Fitted) -> float:
    """Time of one call."""
    scale = chip.fp16_tops / 10
    efficiency = np.array([fitted.efficiency.get(kind, 1.0) for kind in load.kind])
    rate = np.array([fitted.activation_gb_s[kind] for kind in load.kind]) * 1e9 * scale
    peak = chip.fp16_tops * 1e12 * np.where(load.integer, chip.int8_speedup, 1.0)
    memory = chip.bandwidth_gb_s * 1e9
    engine = 2 * load.macs / (peak * efficiency) + load.activations / rate
    spilled = np.maximum(0.0, load.activations - WORKING_SET_BYTES)
    streaming = load.weights / (memory * fitted.weight_share) + spilled / (memory * fitted.spill_share)
    each = np.maximum(engine, streaming) + fitted.operator_us * 1e-6 / scale
    return float(fitted.call_us * 1e-6 + load.count @ each) * fitted.pace.get(chip.name, 1.0)


@cache
def fitted() -> Fitted:
    """The committed result of the fit."""
    return Fitted.model_validate_json(FITTED.read_text())


def write_fitted(values: Fitted, path: Path = FITTED) -> None:
    """Write what `fitted` reads, to four significant digits."""
    rounded = json.loads(values.model_dump_json(), parse_float=lambda text: float(f"{float(text):.4g}"))
    path.write_text(json.dumps(rounded, indent=2) + "\n")


def estimates(program: Program | Path, batch_size: int = 1) -> tuple[Estimated | Skipped, ...]:
    """Latency of one call on each of `CHIP_OF`, all operators taken to run on the Neural Engine.

    Skipped where the placement rules leave no operator there, as for a program in FP32, and where a loop or a recurrent
    layer hides how much work there is.

    Raises:
        PackageError: The package cannot be read.
    """
    placed = placement(program)
    program = read_program(read_package(program)) if isinstance(program, Path) else program
    runtime = "Core ML, Neural Engine"
    reason = _cannot_estimate(program, placed)
    if reason:
        return tuple(Skipped(runtime=runtime, device=device, reason=reason) for device in CHIP_OF)
    load, values = workload(works(program, batch_size)), fitted()
    method = (
        f"roofline per operator on rated peaks, efficiencies fitted to {values.rows} published latencies; on "
        f"{values.test_rows} held-out ones: median error {values.test_error:.0%}, rank correlation "
        f"{values.test_spearman:.2f}; operators off the Neural Engine are timed as if they ran there"
    )
    return tuple(
        Estimated(
            runtime=runtime,
            device=device,
            batch_size=batch_size,
            median_ns=round(seconds(load, CHIPS[chip], values) * 1e9),
            method=method,
            source=", ".join(CHIPS[chip].sources),
            placement=placed,
            figures={"macs": float(load.count @ load.macs)},
        )
        for device, chip in CHIP_OF.items()
    )


def _cannot_estimate(program: Program, placed: Placement) -> str | None:
    uncounted = sorted(UNCOUNTED & program.count_operators().keys())
    if uncounted:
        return f"the work of {', '.join(uncounted)} is not counted"
    if not placed.accelerated:
        reasons = "; ".join(sorted({fallback.reason for fallback in placed.fallback}))
        return f"no operator is likely to run on the Neural Engine: {reasons}"
    return None
