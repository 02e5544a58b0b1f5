"""Checkpoints as people have them, each from its file to a report on three targets by the command alone.

    python tests/benchmarks/bench_intake.py [--small] [NAME ...]

A user writes the recipe that the table counts the lines of, and no Python: the class of a network whose weights alone
were saved is the user's already. The first seven hold trained weights of the Fashion-MNIST demo, whose labels make the
accuracy real, or Keras' MobileNetV2; the others are Hugging Face folders from configurations with seeded weights, whose
fidelity needs no trained ones. Without names, all are run, and the table is written to ``results/intake.md`` and
``results/intake.json``. Already measured rows of the JSON file are kept where only some are run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from calibration_data.fashion_mnist import network
from pipeline import cli
from pipeline.report.model import Report, TargetRecord, read_report
from pipeline.report.verdict import verdict
from tests.networks import families
from tests.pipeline.models.checkpoints import keras_models

ROOT = Path(__file__).parents[2]
DEMO = Path(network.__file__).parent
RESULTS = Path(__file__).parent / "results"
TARGETS = ("onnx", "coreml", "tflite")


@dataclass(frozen=True)
class Row:
    """What a checkpoint came to.

    Attributes:
        size: Of the network and its input.
        seconds: Of all commands together, from the start of the first process.
        verdict: Of the whole report, which also asks that no INT8 file is slower than its FP32 one.
        budget: Whether the accuracy budget is met.
        metric: The original's, and the least and most of the targets.
        sqnr_db: Per target, of the INT8 file's outputs against the original's on the evaluation set; a status instead
            where there is none.
    """

    checkpoint: str
    size: str
    recipe_lines: int
    commands: int
    seconds: float
    verdict: str
    budget: str
    metric: str
    sqnr_db: dict[str, float | str]


@dataclass(frozen=True)
class Made:
    """A checkpoint in its folder, and what its user writes."""

    size: str
    model: dict[str, Any]
    data: dict[str, Any]


def of_demo(write: Callable[[Path, nn.Module], dict[str, Any]]) -> Callable[[Path, bool], Made]:
    """The trained network of the demo with its weights, or itself, written in some way."""

    def make(folder: Path, small: bool) -> Made:
        net = network.resnet().eval()
        net.load_state_dict(load_file(DEMO / "model.safetensors"))
        (folder / "my_net.py").write_text(Path(network.__file__).read_text())
        model = write(folder, net)
        if "factory" in model:
            model["inputs"] = [{"name": "image", "shape": [1, 28, 28]}]
        data = {
            "preprocessing": {"scale": 1 / 255, "mean": [0.286], "std": [0.353]},
            "calibration": {"npz": str(DEMO / "train.npz"), "limit": 64 if small else 512},
            "evaluation": {"npz": str(DEMO / "test.npz"), "limit": 200 if small else 2000},
        }
        return Made("ResNet, 1x28x28", model, data)

    return make


def nested_ema(folder: Path, net: nn.Module) -> dict[str, Any]:
    weights = net.state_dict()
    worse = {name: value * 1.5 if value.is_floating_point() else value for name, value in weights.items()}
    state = {"epoch": 90, "model": worse, "ema": {"module": weights}, "arguments": argparse.Namespace(lr=0.1)}
    torch.save(state, folder / "last.ckpt")
    return {"factory": "my_net:resnet", "checkpoint": "last.ckpt", "weights": "ema"}


def data_parallel(folder: Path, net: nn.Module) -> dict[str, Any]:
    torch.save({"state_dict": nn.DataParallel(net).state_dict()}, folder / "checkpoint.pth.tar")
    return {"factory": "my_net:resnet", "checkpoint": "checkpoint.pth.tar"}


def halved(folder: Path, net: nn.Module) -> dict[str, Any]:
    torch.save(net.half().state_dict(), folder / "half.pt")
    return {"factory": "my_net:resnet", "checkpoint": "half.pt"}


def safetensors(folder: Path, net: nn.Module) -> dict[str, Any]:
    save_file(net.state_dict(), folder / "model.safetensors")
    return {"factory": "my_net:resnet", "checkpoint": "model.safetensors"}


def traced(folder: Path, net: nn.Module) -> dict[str, Any]:
    torch.jit.save(torch.jit.trace(net, torch.zeros(1, 1, 28, 28)), str(folder / "traced.pt"))
    return {"checkpoint": "traced.pt", "inputs": [{"name": "image", "shape": [1, 28, 28]}]}


def program(folder: Path, net: nn.Module) -> dict[str, Any]:
    batch = torch.export.Dim("batch", min=1, max=1024)
    exported = torch.export.export(net, (torch.zeros(2, 1, 28, 28),), dynamic_shapes=({0: batch},))
    torch.export.save(exported, folder / "model.pt2")
    return {"checkpoint": "model.pt2"}


def keras_mobilenet(folder: Path, small: bool) -> Made:
    """MobileNetV2 of Keras' applications, which is written by a process of its own."""
    side, alpha = (64, 0.35) if small else (128, 0.5)
    code = (
        f"import sys; sys.path.insert(0, {str(Path(keras_models.__file__).parent)!r})\n"
        "import keras_models as made, keras\n"
        "keras.utils.set_random_seed(0)\n"
        f"net = keras.applications.MobileNetV2(({side}, {side}, 3), {alpha}, weights=None, classes=10)\n"
        f"made.with_random_statistics(net).save({str(folder / 'model.keras')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=300)
    photographs(folder / "images", side)
    source = {"folder": "images", "labels": None}
    data = {"preprocessing": {"scale": 1 / 127.5, "mean": [1.0], "std": [1.0]}, "calibration": source}
    return Made(f"width {alpha}, 3x{side}x{side}", {"checkpoint": "model.keras"}, data | {"evaluation": source})


def photographs(folder: Path, side: int, count: int = 48) -> None:
    """Images of smooth random colours with grain, as PNG files."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((side, side), 3)
        grain = generator.normal(0, 12, (side, side, 3))
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{index:03}.png")


FULL: dict[str, dict[str, Any]] = {
    "vit": {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768},
    "resnet": {"embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [2, 2, 2, 2]},
    "segformer": {"hidden_sizes": [16, 32, 80, 128], "decoder_hidden_size": 64},
    "yolos": {"hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 384, "num_hidden_layers": 4}
    | {"image_size": [64, 64], "num_detection_tokens": 20},
    "bert": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512},
    "distilbert": {"dim": 256, "n_layers": 4, "n_heads": 4, "hidden_dim": 1024},
    "minilm": {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 768},
    "wav2vec2": {"hidden_size": 64, "intermediate_size": 128},
}
"""Changes of the small configurations in `tests.networks.families`."""


def of_family(name: str) -> Callable[[Path, bool], Made]:
    """A folder of Hugging Face's, with images, texts or recordings beside it."""

    def make(folder: Path, small: bool) -> Made:
        family = families.save(name, folder / "model", **({} if small else FULL.get(name, {})))
        model, size = {"huggingface": "model"}, "small" if small else ", ".join(map(str, _sizes(FULL.get(name, {}))))
        if family.texts:
            with (folder / "texts.csv").open("w", newline="") as opened:
                csv.writer(opened).writerows([["text"], *([text] for text in families.texts(96))])
            source: dict[str, Any] = {"table": "texts.csv", "labels": None}
        elif family.processor.get("sampling_rate"):
            np.savez(folder / "sound.npz", sound=_tones(48, 800))
            source = {"npz": "sound.npz", "inputs": ["sound"], "labels": None}
        else:
            photographs(folder / "images", 72)
            source = {"folder": "images", "labels": None}
        return Made(f"{family.network}: {size}", model, {"calibration": source, "evaluation": source})

    return make


def _sizes(changes: dict[str, Any]) -> list[str]:
    shown = ("hidden_size", "hidden_sizes", "dim", "num_hidden_layers", "n_layers", "image_size")
    return [f"{name} {changes[name]}" for name in shown if name in changes]


def _tones(count: int, length: int) -> Any:
    """Sums of three tones with noise ``(count, length) float32``."""
    generator = np.random.default_rng(0)
    tones = generator.uniform(0.01, 1.5, (3, count, 1)) * np.arange(length) + generator.uniform(0, 6, (3, count, 1))
    return (np.sin(tones).sum(0) / 4 + generator.normal(0, 0.05, (count, length))).astype(np.float32)


CHECKPOINTS: dict[str, Callable[[Path, bool], Made]] = {
    "state dict under ema": of_demo(nested_ema),
    "DataParallel prefix": of_demo(data_parallel),
    "half weights": of_demo(halved),
    "safetensors": of_demo(safetensors),
    "traced TorchScript": of_demo(traced),
    "torch.export .pt2": of_demo(program),
    "Keras MobileNetV2": keras_mobilenet,
    **{f"Hugging Face {name}": of_family(name) for name in FULL},
}


def measure(name: str, folder: Path, small: bool) -> Row:
    """Make a checkpoint, write its recipe, and give the command that its user gives."""
    made = CHECKPOINTS[name](folder, small)
    entry = {"name": "run", "model": made.model, "data": made.data, "stages": ["quantize"], "targets": list(TARGETS)}
    written = yaml.safe_dump(entry, sort_keys=False, default_flow_style=None, width=110)
    (folder / "recipe.yaml").write_text(written)
    started = time.perf_counter()
    command("run", "recipe.yaml", "--out", "out", folder=folder)
    seconds = time.perf_counter() - started
    report = read_report(folder / "out" / "report.json")
    return Row(
        name,
        made.size,
        len(written.splitlines()),
        1,
        round(seconds, 1),
        str(verdict(report).tone),
        ", ".join(sorted({sure for budget in report.budgets for sure in budget.verdict.values()})),
        _metric(report),
        {record.target: _fidelity(record) for record in report.targets},
    )


def command(*arguments: str, folder: Path) -> None:
    """Give a command of edgewright's in a folder.

    Raises:
        RuntimeError: It failed; the message is the end of what it wrote.
    """
    given = [sys.executable, "-m", cli.__name__, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(given, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
    print(done.stdout, flush=True)
    if done.returncode:
        raise RuntimeError(f"edgewright {' '.join(arguments)}: exit {done.returncode}: {done.stderr[-2000:]}")


def _metric(report: Report) -> str:
    """The original's first metric and the range over the targets; empty where there are no labels."""
    if report.original is None or not report.original.metrics:
        return ""
    name, value = next(iter(report.original.metrics.items()))
    found = [record.metrics[name] for record in report.targets if name in record.metrics]
    return f"{name} {value:.4f}, {min(found):.4f} to {max(found):.4f}" if found else f"{name} {value:.4f}"


def _fidelity(record: TargetRecord) -> float | str:
    if record.status != "ok" or record.fidelity is None:
        return f"{record.status}: {record.reason or record.metrics_skipped}".partition("\n")[0]
    return round(min(999.0 if each.sqnr_db is None else each.sqnr_db for each in record.fidelity.values()), 1)


def table(rows: list[Row]) -> str:
    """All rows as a table in Markdown."""
    header = (
        "checkpoint",
        "network",
        "lines of recipe",
        "commands",
        "seconds",
        "verdict",
        "budget",
        "original, INT8",
        *TARGETS,
    )
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        numbers = [str(row.sqnr_db.get(target, "")) for target in TARGETS]
        shown = (row.recipe_lines, row.commands, f"{row.seconds:.0f}", row.verdict, row.budget, row.metric, *numbers)
        lines.append("| " + " | ".join((row.checkpoint, row.size, *map(str, shown))) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is asked for, and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CHECKPOINTS))
    arguments.add_argument("--small", action="store_true", help="networks and sets that run in seconds; writes nothing")
    asked = arguments.parse_args()
    if unknown := set(asked.names) - set(CHECKPOINTS):
        arguments.error(f"{', '.join(unknown)}: not one of {', '.join(CHECKPOINTS)}")
    stored = RESULTS / "intake.json"
    rows = {entry["checkpoint"]: Row(**entry) for entry in json.loads(stored.read_text())} if stored.exists() else {}
    for name in asked.names or CHECKPOINTS:
        with tempfile.TemporaryDirectory() as opened:
            rows[name] = measure(name, Path(opened), asked.small)
        print(table([rows[name]]), flush=True)
        if not asked.small:
            ordered = [rows[each] for each in CHECKPOINTS if each in rows]
            stored.write_text(json.dumps([asdict(row) for row in ordered], indent=1) + "\n")
            stored.with_suffix(".md").write_text(table(ordered))


if __name__ == "__main__":
    main()
