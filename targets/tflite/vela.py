"""Arm Ethos-U NPUs through Vela, Arm's compiler (https://gitlab.arm.com/artificial-intelligence/ethos-u/ethos-u-vela).

Vela compiles an integer ``.tflite`` for one NPU configuration and predicts its speed with Arm's own model of the
hardware. Every figure here is Vela's estimate; no NPU is measured.
"""

from __future__ import annotations

import csv
import importlib.util
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from pipeline.core import TargetError
from pipeline.target import Estimated, Fallback, Placement, Skipped

SOURCE = "https://gitlab.arm.com/artificial-intelligence/ethos-u/ethos-u-vela"
COMPILE_TIMEOUT_S = 600

PLACED = re.compile(r"^\s*(CPU|NPU): (\S+) = ", re.MULTILINE)
REFUSED = re.compile(r"operator: (?P<op>[^,\s]+), ofm: '[^\n]*\nReason: (?P<reason>[^\n]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation:
    """A model compiled for one NPU.

    Attributes:
        path: The compiled ``_vela.tflite``, which the NPU's driver loads.
        figures: Vela's predictions, units in the names.
        system: System configuration and memory mode that the predictions hold for.
    """

    path: Path
    placement: Placement
    figures: dict[str, float]
    system: str


def estimate(model: Path, configuration: str) -> Estimated | Skipped:
    """Latency that Vela predicts for a model on one Ethos-U, or why there is none."""
    device = f"Arm {configuration.replace('ethos', 'Ethos').replace('-u', '-U', 1)}"
    if importlib.util.find_spec("ethosu") is None:
        return Skipped(runtime="Vela", device=device, reason="not installed: pip install ethos-u-vela")
    try:
        compiled = compile_for(model, configuration)
    except TargetError as error:
        return Skipped(runtime=_vela(), device=device, reason=str(error))
    on_cpu = compiled.placement.operators - compiled.placement.accelerated
    if on_cpu == compiled.placement.operators:
        reasons = "; ".join(f"{fallback.op}: {fallback.reason}" for fallback in compiled.placement.fallback)
        return Skipped(runtime=_vela(), device=device, reason=f"no operator runs on the NPU: {reasons}")
    left_out = f", without the {on_cpu} operators that fall to the CPU" if on_cpu else ""
    return Estimated(
        runtime=_vela(),
        device=device,
        median_ns=round(compiled.figures["inference_time_ns"]),
        method=f"estimated by {_vela()} for {configuration}, {compiled.system}{left_out}",
        source=SOURCE,
        placement=compiled.placement,
        figures=compiled.figures,
    )


def compile_for(model: Path, configuration: str) -> Compilation:
    """Compile ``model`` into the folder ``<configuration>`` next to it.

    Raises:
        TargetError: Vela refused the model; holds Vela's own reason.
    """
    folder = model.parent / configuration
    command = [sys.executable, "-m", "ethosu.vela", str(model), "--accelerator-config", configuration]
    options = ["--show-cpu-operations", "--output-dir", str(folder)]
    try:
        finished = subprocess.run(
            [*command, *options], capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise TargetError(
            f"Vela did not finish within {COMPILE_TIMEOUT_S} s", where=f"{model.name} on {configuration}"
        ) from None
    summaries = sorted(folder.glob(f"{model.stem}_summary_*.csv"))
    if finished.returncode or not summaries:
        reason = (finished.stderr.strip() or finished.stdout.strip()).splitlines()[-1:] or ["no output"]
        raise TargetError(f"Vela failed: {reason[0]}", where=f"{model.name} on {configuration}")
    summary = read_summary(summaries[-1].read_text())
    return Compilation(
        path=folder / f"{model.stem}_vela.tflite",
        placement=read_placement(finished.stdout, configuration),
        figures=figures(summary),
        system=f"{summary['system_config']}, {summary['memory_mode']}, {float(summary['core_clock']) / 1e6:.0f} MHz",
    )


def read_summary(text: str) -> dict[str, str]:
    """The one row of Vela's summary CSV, by column."""
    (row,) = csv.DictReader(text.splitlines())
    return row


def figures(summary: dict[str, str]) -> dict[str, float]:
    """Vela's predictions in the units of the report. Vela gives memory in KiB and time in seconds.

    >>> row = dict.fromkeys(COLUMNS, "0") | {"inference_time": "0.002", "sram_memory_used": "1.5"}
    >>> figures(row)["inference_time_ns"], figures(row)["sram_bytes"]
    (2000000.0, 1536.0)
    """
    return {name: float(summary[column]) * unit for column, (name, unit) in COLUMNS.items()}


COLUMNS = {
    "inference_time": ("inference_time_ns", 1e9),
    "core_clock": ("clock_hz", 1.0),
    "cycles_total": ("cycles", 1.0),
    "cycles_npu": ("npu_cycles", 1.0),
    "nn_macs": ("macs", 1.0),
    "sram_memory_used": ("sram_bytes", 1024.0),
    "dram_memory_used": ("dram_bytes", 1024.0),
    "off_chip_flash_memory_used": ("flash_bytes", 1024.0),
    "sram_total_bytes": ("sram_traffic_bytes", 1.0),
    "dram_total_bytes": ("dram_traffic_bytes", 1.0),
    "off_chip_flash_total_bytes": ("flash_traffic_bytes", 1.0),
}


def read_placement(log: str, configuration: str) -> Placement:
    """Operators on the NPU and on the CPU, with Vela's reason, from what Vela printed.

    Vela counts its own operators, which are more or fewer than the file's where it splits or fuses.
    """
    placed = Counter(processor for processor, _ in PLACED.findall(log))
    refused = Counter((match["op"], match["reason"].strip()) for match in REFUSED.finditer(log))
    unexplained = placed["CPU"] - refused.total()
    if unexplained > 0:
        refused["other", "Vela gives no reason"] += unexplained
    return Placement(
        operators=placed.total(),
        accelerated=placed["NPU"],
        fallback=tuple(Fallback(op=op, count=count, reason=reason) for (op, reason), count in sorted(refused.items())),
        source=f"{_vela()} for {configuration}",
    )


@cache
def _vela() -> str:
    return f"Vela {version('ethos-u-vela')}"
