"""What the embedded demos lose in INT8, and pruned to half of their multiply-accumulates.

Run ``python -m tests.benchmarks.bench_demos``; about 90 minutes on 2 cores. For each of detection, segmentation,
keyword and denoise it prints, and writes to ``results/demos.json``:

* ``int8``: the checkpoint quantized alone: its metric in each target, in FP32 and INT8, sizes and latencies;
* ``qat``: the same after quantization-aware training;
* ``half``: pruned to half of its MACs, distilled, and quantized.

The last two train on more data than is committed: the first samples that the checkpoint was trained on.

Nothing is chosen by the test samples. ``--task`` and ``--part`` run some of them and leave the others' results in the
file. ``--samples`` and ``--epochs`` make it shorter; the figures then are not those of the full run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from calibration_data.denoise.pack import pairs
from calibration_data.keyword.speak import utterances
from calibration_data.scenes.compose import compose_all
from pipeline.cli.demo import Demo, recipe_of
from pipeline.execution.apply import run
from pipeline.machine.processor import cpu_name
from pipeline.recipe import parse_recipe
from pipeline.report.model import Report, metric_info
from pipeline.report.units import metric as printed
from pipeline.target import Latency, Measured

RESULTS = Path(__file__).parent / "results" / "demos.json"
Arrays = Mapping[str, np.ndarray[Any, Any]]
MADE: dict[Demo, Callable[[int], Arrays]] = {
    Demo.DETECTION: lambda count: compose_all("train", range(count)).arrays(),
    Demo.SEGMENTATION: lambda count: compose_all("train", range(count)).arrays(),
    Demo.KEYWORD: lambda count: utterances("train", range(count)),
    Demo.DENOISE: lambda count: pairs("train", range(1000, 1000 + count)),
}
SAMPLES = 8000
PARTS = ("int8", "qat", "half")
LONG = {"batch_size": 64, "optimizer": "adamw", "weight_decay": 0.01, "ema": 0.99, "warmup_ratio": 0.1}
DISTILL: dict[Demo, dict[str, Any]] = {
    Demo.DETECTION: {**LONG, "epochs": 24, "learning_rate": 0.004},
    Demo.SEGMENTATION: {**LONG, "epochs": 24, "learning_rate": 0.006},
    Demo.KEYWORD: {"epochs": 12, "batch_size": 128, "optimizer": "adamw", "learning_rate": 0.004},
    Demo.DENOISE: {"epochs": 8, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.003},
}
QAT: dict[Demo, dict[str, Any]] = {
    Demo.DETECTION: {"epochs": 2, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.0005},
    Demo.SEGMENTATION: {"epochs": 2, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.0005},
    Demo.KEYWORD: {"epochs": 2, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.0005},
    Demo.DENOISE: {"epochs": 2, "batch_size": 32, "optimizer": "adamw", "learning_rate": 0.002},
}


def report_of(demo: Demo, stages: list[Any], folder: Path, train: Path | None = None) -> Report:
    """A run of the demo's recipe with other stages and, where they are given, other training samples."""
    recipe = recipe_of(demo)
    content = yaml.safe_load(recipe.read_text()) | {"stages": stages}
    if train is not None:
        content["data"]["train"]["npz"] = str(train)
    return run(parse_recipe(content), folder / "out", root=recipe.parent)


def figures(report: Report) -> dict[str, Any]:
    """The original's metric and cost, and each target's."""
    assert report.task is not None
    name = report.task.metrics[0].name
    return {
        "metric": name,
        "original": {
            "value": report.original.metrics[name],
            "macs": report.original.macs,
            "size_bytes": report.original.size_bytes,
        },
        "macs": report.stages[-1].macs,
        "after": {stage.stage: stage.metrics[name] for stage in report.stages},
        "targets": {
            target.target: {
                "status": target.status,
                "fp32": (target.fp32_metrics or {}).get(name),
                "int8": (target.metrics or {}).get(name),
                "fp32_bytes": target.fp32_artifact and target.fp32_artifact.size_bytes,
                "int8_bytes": target.artifact and target.artifact.size_bytes,
                "fp32_ns": one_thread(target.fp32_latency),
                "int8_ns": one_thread(target.latency),
            }
            for target in report.targets
        },
    }


def one_thread(latencies: tuple[Latency, ...]) -> float | None:
    """The measured median on one thread."""
    return next((each.median_ns for each in latencies if isinstance(each, Measured) and each.threads == 1), None)


def lines(demo: Demo, part: str, report: Report) -> str:
    """A row for each target."""
    found = figures(report)
    info = metric_info(report, found["metric"])
    rows = [f"{demo} {part}: original {printed(found['original']['value'], info)}, {found['macs'] / 1e6:.1f} M MACs"]
    rows += [f"  after {stage}: {printed(value, info)}" for stage, value in found["after"].items()]
    for name, target in found["targets"].items():
        if target["int8"] is None:
            rows.append(f"  {name}: {target['status']}")
            continue
        faster = f", {target['fp32_ns'] / target['int8_ns']:.2f} times as fast" if target["int8_ns"] else ""
        rows.append(
            f"  {name}: FP32 {printed(target['fp32'], info)}, INT8 {printed(target['int8'], info)}, "
            f"{target['fp32_bytes'] / target['int8_bytes']:.2f} times smaller{faster}"
        )
    return "\n".join(rows)


ROWS = {"detection": "mAP 50:95", "segmentation": "mean IoU", "keyword": "top-1", "denoise": "PSNR"}
HEADER = "| | FP32 | onnxruntime | LiteRT | Core ML, by our interpreter |"


def table(results: Mapping[str, Any], part: str) -> str:
    """The README's table of a part: each demo's metric, and its speed against FP32 in the same runtime."""
    rows = [HEADER, "|---|---|---|---|---|"]
    for demo, metric in ROWS.items():
        if (found := results.get(f"{demo} {part}")) is not None:
            cells = [_shown(found["metric"], found["original"]["value"])]
            for name in ("onnx", "tflite", "coreml"):
                target = found["targets"][name]
                faster = f", {target['fp32_ns'] / target['int8_ns']:.2f}×" if target["int8_ns"] else ""
                cells.append(_shown(found["metric"], target["int8"]) + faster)
            rows.append(f"| {demo}, {metric} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _shown(metric: str, value: float) -> str:
    return f"{value:.2f} dB" if metric == "psnr" else f"{100 * value:.2f} %"


def main() -> None:
    """Run what is asked for, print it, and keep it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", type=Demo, action="append", choices=list(MADE))
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--epochs", type=int)
    given = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for demo in given.task or MADE:
        for part in given.part or PARTS:
            with tempfile.TemporaryDirectory() as scratch:
                quantize = yaml.safe_load(recipe_of(demo).read_text())["stages"][-1]
                epochs = {"epochs": given.epochs} if given.epochs else {}
                stages: list[Any] = [quantize]
                if part == "qat":
                    stages = [{"quantize": quantize["quantize"] | {"qat": QAT[demo] | epochs}}]
                elif part == "half":
                    stages = [{"prune": {"macs_ratio": 0.5}}, {"distill": DISTILL[demo] | epochs}, quantize]
                train = None
                if part != "int8":
                    train = Path(scratch) / "train.npz"
                    np.savez(train, **MADE[demo](given.samples))
                report = report_of(demo, stages, Path(scratch), train)
            print(lines(demo, part, report), flush=True)
            results[f"{demo} {part}"] = figures(report) | {"samples": given.samples, "cpu": cpu_name()}
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
