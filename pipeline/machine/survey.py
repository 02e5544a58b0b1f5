"""What this machine is, in an instant and without torch: processor, memory, disk, GPU, phones."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.machine.processor import INTEGER_FEATURES, all_cores, cpu_features, cpu_name

CPUINFO = Path("/proc/cpuinfo")
SECONDS = 1.0
"""How long another program may take to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """This machine.

    Attributes:
        cpu_features: Those that integer kernels depend on.
        gpu: Name, driver and memory of an NVIDIA GPU, or why nothing is known of one.
        phones: Serial numbers of phones on adb that answer, or why nothing is known of them.
    """

    os: str
    mac: bool
    cpu: str
    cpu_features: tuple[str, ...]
    cores: int
    memory_bytes: int
    memory_available_bytes: int
    disk_free_bytes: int
    gpu: tuple[str, ...]
    gpu_note: str
    phones: tuple[str, ...]
    phones_note: str


def survey() -> Machine:
    """Look at this machine; other programs are asked at the same time, and not waited for."""
    smi = _started("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    adb = _started("adb", "devices")
    name, features = _processor()
    memory = psutil.virtual_memory()
    gpu, gpu_note = _gpu(smi)
    phones, phones_note = _phones(adb)
    return Machine(
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        mac=sys.platform == "darwin",
        cpu=name,
        cpu_features=features,
        cores=all_cores(),
        memory_bytes=memory.total,
        memory_available_bytes=memory.available,
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
        gpu=gpu,
        gpu_note=gpu_note,
        phones=phones,
        phones_note=phones_note,
    )


def _processor() -> tuple[str, tuple[str, ...]]:
    """Name and features; from Linux itself where it is, because py-cpuinfo takes more than a second."""
    try:
        lines = [line.partition(":") for line in CPUINFO.read_text().splitlines()]
    except OSError:
        return cpu_name(), cpu_features()
    facts = {key.strip().lower(): value.strip() for key, _, value in reversed(lines)}
    flags = (facts.get("flags") or facts.get("features") or "").split()
    name = facts.get("model name") or platform.processor() or platform.machine()
    return name, tuple(feature for feature in INTEGER_FEATURES if feature in flags)


def _started(program: str, *arguments: str) -> subprocess.Popen[str] | None:
    path = shutil.which(program)
    if path is None:
        return None
    try:
        return subprocess.Popen([path, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return None


def _answer(process: subprocess.Popen[str]) -> Sequence[str] | None:
    """The lines that a program has printed; None where it fails or takes too long."""
    try:
        text, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None
    return [line.strip() for line in text.splitlines() if line.strip()] if process.returncode == 0 else None


def _gpu(smi: subprocess.Popen[str] | None) -> tuple[tuple[str, ...], str]:
    if smi is None:
        driver = Path("/proc/driver/nvidia/version").is_file()
        return (), "a driver is loaded, and nvidia-smi is missing" if driver else "none found: there is no nvidia-smi"
    lines = _answer(smi)
    return (tuple(lines), "") if lines else ((), "nvidia-smi finds none, or does not answer")


def _phones(adb: subprocess.Popen[str] | None) -> tuple[tuple[str, ...], str]:
    if adb is None:
        return (), "adb is not installed: install Android's platform-tools to time on a phone"
    lines = _answer(adb)
    if lines is None:
        return (), f"adb does not answer within {SECONDS:.0f} s: run 'adb devices', and try again"
    phones = [line.split("\t") for line in lines[1:] if "\t" in line]
    ready = tuple(serial for serial, state in phones if state == "device")
    waiting = [f"{serial} is {state}" for serial, state in phones if state != "device"]
    return ready, "; ".join(waiting) or ("" if ready else "none connected")
