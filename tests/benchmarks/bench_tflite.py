"""LiteRT side by side: ours, ai-edge-quantizer, TensorFlow's converter and FP32 on published networks, interleaved.

    python tests/benchmarks/bench_tflite.py [--networks resnet18 …] [--threads 1 2] [--files folder] [--results file]

ai-edge-quantizer gets the FP32 ``.tflite`` and the calibration images, with its static recipe (int8 activations, int8
weights per channel). TensorFlow's own converter cannot read PyTorch: it gets the Keras twin of the architecture where
Keras has one, and a representative data set. Every file takes NHWC images, as Keras networks do, and runs in LiteRT
with XNNPACK at batch 1; one call is one ``invoke``. A ratio below 1 means that ours is faster. The band is half the
spread between the quartiles of both. ``--files`` keeps the files, so that measuring can be done apart from making them;
``--results`` writes a JSON file with the medians, in which a row replaces the older one of its network and threads.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import networks
import numpy as np
from bench_onnx import CALIBRATION_IMAGES, Images, half_spread

import targets
from pipeline.core import Model
from pipeline.data.open import from_dataset
from pipeline.machine.processor import cpu_name
from pipeline.machine.timing import Candidate, interleave
from pipeline.recipe import Budget, QuantizeConfig, TfliteConfig
from pipeline.stages.quantize import quantize
from targets.tflite.sdk import quiet
from targets.tflite.session import interpreter

TARGET = targets.get("tflite", TfliteConfig(input_layout="nhwc"))


def ours(model: Model, fp32: Path, out: Path) -> Path:  # noqa: ARG001
    config = QuantizeConfig(observers=("minmax",), bias_correction=False, mixed_precision=False)
    program = quantize(model, config, from_dataset(Images(), model.inputs), budget=Budget(metric="agreement"))
    return TARGET.lower(program, out, name="ours").path


def ai_edge_quantizer(model: Model, fp32: Path, out: Path) -> Path:  # noqa: ARG001
    from ai_edge_quantizer import quantizer, recipe

    peer = quantizer.Quantizer(str(fp32))
    peer.load_quantization_recipe(recipe.static_wi8_ai8())
    path = out / "ai_edge_quantizer.tflite"
    feeds = [{"image": feed["image"].transpose(0, 2, 3, 1)} for feed in Images().feeds()]
    peer.quantize(peer.calibrate({"serving_default": feeds})).export_model(str(path))
    return path


def tensorflow(name: str, out: Path) -> Path:
    """The Keras twin through ``tf.lite.TFLiteConverter``."""
    import tensorflow as tf

    def representative() -> Iterator[list[np.ndarray[Any, Any]]]:
        for feed in Images().feeds():
            yield [feed["image"].transpose(0, 2, 3, 1)]

    tf.keras.utils.set_random_seed(0)
    twin = getattr(tf.keras.applications, TWINS[name])(weights=None, classifier_activation=None)
    converter = tf.lite.TFLiteConverter.from_keras_model(twin)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    path = out / "tensorflow.tflite"
    path.write_bytes(converter.convert())
    return path


PEERS: dict[str, Callable[[Model, Path, Path], Path]] = {"ours": ours, "ai_edge_quantizer": ai_edge_quantizer}
COLUMNS = ("fp32", *PEERS, "tensorflow")
TWINS = {"mobilenet_v2": "MobileNetV2", "resnet50": "ResNet50"}
"""The architectures that ``tf.keras.applications`` has as well."""


def files(name: str, out: Path) -> dict[str, Path]:
    """The network's file from every tool, made where it is not there; a tool that fails is reported and left out."""
    out.mkdir(parents=True, exist_ok=True)
    labels = COLUMNS if name in TWINS else ("fp32", *PEERS)
    made = {label: path for label in labels if (path := out / f"{label}.tflite").exists()}
    missing = [label for label in labels if label not in made]
    if not missing:
        return made
    model = networks.build(name)
    for label in missing:
        try:
            made[label] = _make(label, name, model, out)
        except Exception as error:
            print(f"{name}: {label} failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    return made


def _make(label: str, name: str, model: Model, out: Path) -> Path:
    if label == "fp32":
        return TARGET.lower(model.original(), out, name="fp32").path
    if label == "tensorflow":
        with quiet():
            return tensorflow(name, out)
    return PEERS[label](model, out / "fp32.tflite", out)


def candidate(label: str, path: Path, threads: int) -> Candidate:
    """One ``invoke`` on an image, which each file gets in its own layout and type."""
    loaded = interpreter(path, threads=threads)
    (details,) = loaded.get_input_details()
    image = networks.images(1, seed=2).numpy()
    if details["shape"][-1] == 3:
        image = image.transpose(0, 2, 3, 1)
    scale, zero_point = details["quantization"]
    if scale:
        image = np.clip(np.rint(image / scale) + zero_point, -128, 127)
    loaded.set_tensor(details["index"], np.ascontiguousarray(image.astype(details["dtype"])))
    return Candidate(runtime=label, device="cpu", call=loaded.invoke)


def partitions(path: Path) -> int:
    return sum(node["op_name"] == "DELEGATE" for node in interpreter(path)._get_ops_details())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", nargs="+", default=list(networks.FACTORIES), choices=list(networks.FACTORIES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time per tool and row")
    parser.add_argument("--files", type=Path, help="folder that keeps the files of every network")
    parser.add_argument("--results", type=Path, help="JSON file to put the medians into")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    ratios = []
    print(f"calibrated on {CALIBRATION_IMAGES} images; milliseconds per image, batch 1")
    print(f"{'network':20} threads partitions |" + "".join(f"{label:>18}" for label in COLUMNS), end="")
    print(" | fp32/ours  ours/best peer   band")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.files or Path(temporary)
        made = {name: files(name, folder / name) for name in arguments.networks}
        for name, threads in itertools.product(arguments.networks, arguments.threads):
            row = measure(name, made[name], threads, arguments.seconds)
            ratios.append(row["ratio"])
            cells = "".join(f"{row['median_ms'].get(label, math.nan):18.3f}" for label in COLUMNS)
            print(f"{name:20} {threads:7} {row['partitions']:10} |{cells}", end="")
            print(f" |{row['speedup_vs_fp32']:9.2f}x {row['ratio']:15.3f} {row['band']:6.1%}", flush=True)
            if arguments.results is not None:
                keep(row, arguments.results)
    print(f"geometric mean of ours / best peer: {statistics.geometric_mean(ratios):.3f}")


def measure(name: str, made: dict[str, Path], threads: int, seconds: float) -> dict[str, Any]:
    """One row of the table, from one interleaved run."""
    candidates = [candidate(label, path, threads) for label, path in made.items()]
    taken = dict(zip(made, interleave(candidates, seconds_per_candidate=seconds), strict=True))
    samples = {label: samples for label, (_, samples) in taken.items()}
    medians = {label: statistics.median(values) / 1e6 for label, values in samples.items()}
    best = min((median, label) for label, median in medians.items() if label not in ("fp32", "ours"))[1]
    return {
        "network": name,
        "threads": threads,
        "cpu": cpu_name(),
        "partitions": partitions(made["ours"]),
        "median_ms": {label: round(median, 4) for label, median in medians.items()},
        "best_peer": best,
        "ratio": round(medians["ours"] / medians[best], 4),
        "band": round(half_spread(samples["ours"]) + half_spread(samples[best]), 4),
        "speedup_vs_fp32": round(medians["fp32"] / medians["ours"], 3),
    }


def keep(row: dict[str, Any], path: Path) -> None:
    """Put a row into the results, in place of the one it repeats."""
    rows = json.loads(path.read_text()) if path.exists() else []
    others = [old for old in rows if (old["network"], old["threads"]) != (row["network"], row["threads"])]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*others, row], indent=1) + "\n")


if __name__ == "__main__":
    main()
