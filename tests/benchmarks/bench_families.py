"""Networks that people bring, from a folder or a factory to a report on three targets: how long, and how close.

    python tests/benchmarks/bench_families.py [--small] [NAME ...]

Hugging Face folders are made from configurations with seeded weights; recurrent networks run on short sequences. Each
row is what a user gets from `edgewright run` with `quantize` and the three targets. Fidelity needs no trained weights.
Without names, all are run, and the table is written to `results/families.md`.
"""

from __future__ import annotations

import argparse
import csv
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.execution.apply import run
from pipeline.recipe import parse_recipe
from pipeline.report.model import Report, TargetRecord
from tests.networks import families

RESULTS = Path(__file__).parent / "results" / "families.md"
TARGETS = ("onnx", "coreml", "tflite")
SAMPLES = 24
HEADER = ("network", "seconds", "skipped", *(f"{target}: int8 dB (FP32 dB)" for target in TARGETS))


class Reader(nn.Module):
    """A CRNN: convolutions over a line of text, a bidirectional LSTM over its columns, and a symbol per column."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.columns = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d((1, None)),
        )  # fmt: skip
        self.lstm = nn.LSTM(4 * width, hidden, bidirectional=True, batch_first=True)
        self.symbols = nn.Linear(2 * hidden, 37)

    def forward(self, image: Tensor) -> Tensor:
        return self.symbols(self.lstm(self.columns(image).squeeze(2).transpose(1, 2))[0])


class Speaker(nn.Module):
    """Three LSTM layers over a spectrogram, and an embedding of length 1, as in generalized end-to-end training."""

    def __init__(self, bins: int, hidden: int) -> None:
        super().__init__()
        self.lstm, self.embed = nn.LSTM(bins, hidden, 3, batch_first=True), nn.Linear(hidden, hidden)

    def forward(self, spectrogram: Tensor) -> Tensor:
        embedding = self.embed(self.lstm(spectrogram)[1][0][-1]).relu()
        return embedding / embedding.norm(dim=1, keepdim=True)


class Voice(nn.Module):
    """Voice activity in a stream: convolutions over a window of sound, and an LSTM cell over windows."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(1, 32, 16, 8), nn.ReLU(), nn.Conv1d(32, 64, 3, 2, 1), nn.ReLU(),
            nn.Conv1d(64, hidden, 3, 2, 1), nn.ReLU(),
        )  # fmt: skip
        self.cell, self.speech = nn.LSTMCell(hidden, hidden), nn.Linear(hidden, 1)

    def forward(self, sound: Tensor, h: Tensor, c: Tensor) -> dict[str, Tensor]:
        h, c = self.cell(self.features(sound.unsqueeze(1)).mean(2), (h, c))
        return {"speech": self.speech(h.relu()).sigmoid(), "h_out": h, "c_out": c}


FULL: dict[str, dict[str, Any]] = {
    "distilbert": {"vocab_size": 30522, "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072}
    | {"max_position_embeddings": 512},
    "segformer": {"hidden_sizes": [32, 64, 160, 256], "depths": [2, 2, 2, 2], "decoder_hidden_size": 256},
    "yolos": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "num_hidden_layers": 6}
    | {"image_size": [224, 224], "patch_size": 16, "num_detection_tokens": 100},
    "wav2vec2": {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4}
    | {"conv_dim": (64,) * 4, "conv_stride": (5, 4, 4, 4), "conv_kernel": (10, 8, 4, 4), "num_feat_extract_layers": 4},
    "llama": {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4}
    | {"num_key_value_heads": 2, "vocab_size": 1000},
}
"""Changes of the small configurations in `tests.networks.families` to the sizes that are reported on."""
SIZES = {
    "distilbert": [{"name": name, "shape": [64], "dtype": "int64"} for name in ("input_ids", "attention_mask")],
    "segformer": [{"name": "pixel_values", "shape": [3, 256, 256]}],
    "yolos": [{"name": "pixel_values", "shape": [3, 224, 224]}],
    "wav2vec2": [{"name": "input_values", "shape": [8000]}],
    "llama": [{"name": "input_ids", "shape": [32], "dtype": "int64"}],
}


def from_folder(name: str, folder: Path, small: bool) -> dict[str, Any]:
    """The recipe of a Hugging Face folder."""
    family = families.save(name, folder / "model", **({} if small else FULL.get(name, {})))
    model: dict[str, Any] = {"huggingface": "model"}
    if not small and name in SIZES:
        model["inputs"] = SIZES[name]
    if family.texts:
        with (folder / "set.csv").open("w", newline="") as opened:
            csv.writer(opened).writerows([["text"], *([text] for text in families.texts(SAMPLES))])
        source: dict[str, Any] = {"table": "set.csv"}
    elif family.processor.get("sampling_rate"):
        length = 800 if small else 8000
        sound = np.random.default_rng(0).standard_normal((SAMPLES, length)).astype(np.float32)
        np.savez(folder / "set.npz", images=sound)
        source = {"npz": "set.npz"}
    else:
        side = 40 if small else 256
        np.savez(folder / "set.npz", images=families.images(SAMPLES, side, side))
        source = {"npz": "set.npz"}
    return {"model": model, "data": {"calibration": source, "evaluation": {**source, "limit": 8}}}


RECURRENT: dict[str, Callable[[bool], tuple[nn.Module, dict[str, Any], list[dict[str, Any]], tuple[int, ...]]]] = {
    "reader": lambda small: (
        Reader(4, 8) if small else Reader(24, 64),
        {"width": 4 if small else 24, "hidden": 8 if small else 64},
        [{"name": "image", "shape": [1, 16, 32] if small else [1, 32, 64]}],
        (),
    ),
    "speaker": lambda small: (
        Speaker(8, 16) if small else Speaker(40, 128),
        {"bins": 8 if small else 40, "hidden": 16 if small else 128},
        [{"name": "spectrogram", "shape": [6, 8] if small else [16, 40]}],
        (),
    ),
    "voice": lambda small: (
        Voice(16 if small else 64),
        {"hidden": 16 if small else 64},
        [
            {"name": "sound", "shape": [256 if small else 512]},
            *({"name": name, "shape": [16 if small else 64]} for name in "hc"),
        ],
        (8,),
    ),
}  # fmt: skip


def from_factory(name: str, folder: Path, small: bool) -> dict[str, Any]:
    """The recipe of a recurrent network."""
    torch.manual_seed(0)
    network, settings, inputs, steps = RECURRENT[name](small)
    save_file(network.state_dict(), folder / "weights.safetensors")
    values = np.random.default_rng(0).standard_normal((SAMPLES, *steps, *inputs[0]["shape"])).astype(np.float32)
    np.savez(folder / "set.npz", images=values)
    model: dict[str, Any] = {
        "factory": f"tests.benchmarks.bench_families:{type(network).__name__}",
        "kwargs": settings,
        "checkpoint": "weights.safetensors",
        "inputs": inputs,
    }
    if name == "voice":
        model["states"] = {"h": "h_out", "c": "c_out"}
    source = {"npz": "set.npz"}
    return {"model": model, "data": {"calibration": source, "evaluation": {**source, "limit": 8}}}


NAMES = (*RECURRENT, "llama", "wav2vec2", "distilbert", "segformer", "yolos", "bert", "minilm", "resnet", "vit", "detr")


def one(name: str, small: bool) -> tuple[str, ...]:
    """Run a network; returns its row."""
    with tempfile.TemporaryDirectory() as opened:
        folder = Path(opened)
        made = (from_factory if name in RECURRENT else from_folder)(name, folder, small)
        steps = {"stages": [{"quantize": {"observers": ["minmax"]}}], "targets": list(TARGETS)}
        recipe = parse_recipe({"name": name, **made, **steps, "budget": {"max_drop": 1.0}})
        started = time.perf_counter()
        report = run(recipe, folder / "out", root=folder)
        seconds = time.perf_counter() - started
    return (
        name,
        f"{seconds:.0f}",
        str(len(report.stages[0].skipped)),
        *(_cell(report, each) for each in report.targets),
    )


def _cell(report: Report, record: TargetRecord) -> str:
    """The least fidelity to the original of all outputs on the evaluation set, and that of the FP32 file."""
    if record.status != "ok" or record.fidelity is None or record.verified is None:
        print(f"{report.run.id} {record.target} {record.status}: {record.reason or record.metrics_skipped}", flush=True)
        return record.status
    worst = min((each.sqnr_db if each.sqnr_db is not None else 999) for each in record.fidelity.values())
    exact = min((999 if each is None else each) for each in record.verified.original_sqnr_db.values())
    return f"{worst:.1f} ({exact:.0f})"


def main() -> None:
    """Run what is asked for, and print a table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("names", nargs="*", choices=[*NAMES, []])
    arguments.add_argument("--small", action="store_true", help="networks that run in seconds")
    asked = arguments.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rows = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    for name in asked.names or NAMES:
        rows.append("| " + " | ".join(one(name, asked.small)) + " |")
        print(rows[-1], flush=True)
    if not asked.names and not asked.small:
        RESULTS.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
