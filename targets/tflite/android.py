"""Latency on an Android phone: LiteRT's own benchmark tool, pushed and run over adb.

The tool comes from https://ai.google.dev/edge/litert/models/measurement; the recipe names where it lies. What
it prints is written by tflite/tools/benchmark/benchmark_model.cc.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

from pipeline.core import TargetError
from pipeline.recipe import AndroidConfig
from pipeline.target import Measured, Skipped, measured

FOLDER = "/data/local/tmp/edgewright"
PROCESSES = 5
RUNS_PER_PROCESS = 50
ADB_TIMEOUT_S = 300

AVERAGES = re.compile(
    r"Inference timings in us: .*Warmup \(avg\): (?P<warmup>[\d.e+]+), Inference \(avg\): (?P<run>[\d.e+]+)"
)


def time_on_phone(model: Path, config: AndroidConfig) -> Measured | Skipped:
    """Time a model on the phone's CPU with XNNPACK, or say why that cannot be.

    The tool prints no single runs, so each of the `PROCESSES` samples is the mean of one process, over
    `RUNS_PER_PROCESS` runs.
    """
    name = f"Android phone {config.serial}" if config.serial else "Android phone"
    try:
        device = phone(config)
        name = f"{_adb(config, 'shell', 'getprop ro.product.model').strip()} ({device})"
        for file in (config.benchmark_tool, model):
            _adb(config, "push", str(file), f"{FOLDER}/{file.name}")
        tool, graph = (shlex.quote(f"{FOLDER}/{file.name}") for file in (config.benchmark_tool, model))
        command = (
            f"chmod 755 {tool} && {tool} --graph={graph} --num_threads={config.threads} --num_runs={RUNS_PER_PROCESS}"
        )
        printed = [_adb(config, "shell", f"{command} --warmup_runs=10 --use_xnnpack=true") for _ in range(PROCESSES)]
        taken = [averages_ns(text) for text in printed]
    except TargetError as error:
        return Skipped(runtime="benchmark_model", device=name, reason=error.problem)
    return measured(
        runtime=f"LiteRT benchmark_model, XNNPACK; each sample is the mean of {RUNS_PER_PROCESS} runs of one process",
        device=name,
        threads=config.threads,
        warmup_ns=tuple(warmup for warmup, _ in taken),
        samples_ns=tuple(run for _, run in taken),
    )


def averages_ns(printed: str) -> tuple[int, int]:
    """Mean duration of a warm-up run and of a run, from what the tool printed in microseconds.

    >>> averages_ns("Inference timings in us: Init: 9, First inference: 8, Warmup (avg): 2.5e+03, Inference (avg): 1.5")
    (2500000, 1500)

    Raises:
        TargetError: The tool did not get to the end; holds its last line.
    """
    found = AVERAGES.search(printed)
    if found is None:
        raise TargetError(f"benchmark_model printed no timings: {_last_line(printed)}")
    return round(float(found["warmup"]) * 1000), round(float(found["run"]) * 1000)


def phone(config: AndroidConfig) -> str:
    """Serial number of the phone that is asked for, or of the only one there is.

    Raises:
        TargetError: There is no adb, or not one such phone.
    """
    if not config.benchmark_tool.is_file():
        raise TargetError(f"no such file: {config.benchmark_tool}")
    lines = _adb(config.model_copy(update={"serial": None}), "devices").splitlines()
    ready = [line.split()[0] for line in lines if line.endswith("\tdevice")]
    if config.serial is None and len(ready) == 1:
        return ready[0]
    if config.serial in ready:
        return str(config.serial)
    wanted = "a single device" if config.serial is None else f"device {config.serial}"
    raise TargetError(f"adb sees {', '.join(ready) or 'no device'}, not {wanted}")


def _adb(config: AndroidConfig, *arguments: str) -> str:
    adb = shutil.which("adb")
    if adb is None:
        raise TargetError("adb is not installed: https://developer.android.com/tools/releases/platform-tools")
    chosen = ["-s", config.serial] if config.serial else []
    try:
        done = subprocess.run(
            [adb, *chosen, *arguments], capture_output=True, text=True, timeout=ADB_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise TargetError(f"adb {arguments[0]} did not finish within {ADB_TIMEOUT_S} s") from None
    printed = done.stdout + done.stderr  # the tool logs to either, by its version
    if done.returncode:
        raise TargetError(f"adb {arguments[0]} failed: {_last_line(printed)}")
    return printed


def _last_line(printed: str) -> str:
    return next((line.strip() for line in reversed(printed.splitlines()) if line.strip()), "no output")
