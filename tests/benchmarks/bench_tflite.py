"""LiteRT side by side: ours, ai-edge-quantizer, TensorFlow's converter and FP32 on published networks, interleaved.

    python tests/benchmarks/bench_tflite.py [--networks resnet18 …] [--threads 1 2]

ai-edge-quantizer gets the FP32 ``.tflite`` and the calibration images, with its static recipe (int8 activations, int8
weights per channel). TensorFlow's own converter cannot read PyTorch: it gets the Keras twin of the architecture where
Keras has one, and a representative data set. Every file runs in LiteRT with XNNPACK at batch 1; one call is one
``invoke``. A ratio below 1 means that ours is faster. The band is half the spread between the quartiles of both.
"""

from __future__ import annotations

import argparse
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
from pipeline.core import ModelArtifact
from pipeline.data import from_dataset
from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.benchmark import Candidate, interleave
from pipeline.stages.quantize import quantize
from targets.tflite.sdk import quiet
from targets.tflite.session import interpreter


def ours(artifact: ModelArtifact, fp32: Path, out: Path) -> Path:  # noqa: ARG001
    config = QuantizeConfig(observers=("minmax",), bias_correction=False, mixed_precision=False)
    program = quantize(artifact, config, from_dataset(Images(), artifact.inputs), budget=Budget(metric="agreement"))
    return targets.get("tflite").lower(program, out, name="ours").path


def ai_edge_quantizer(artifact: ModelArtifact, fp32: Path, out: Path) -> Path:  # noqa: ARG001
    from ai_edge_quantizer import quantizer, recipe

    peer = quantizer.Quantizer(str(fp32))
    peer.load_quantization_recipe(recipe.static_wi8_ai8())
    path = out / "ai_edge_quantizer.tflite"
    peer.quantize(peer.calibrate({"serving_default": list(Images().feeds())})).export_model(str(path))
    return path


def tensorflow(name: str, out: Path) -> Path | None:
    """The Keras twin through ``tf.lite.TFLiteConverter``; None where Keras has no such architecture."""
    import tensorflow as tf

    twins = {"mobilenet_v2": tf.keras.applications.MobileNetV2, "resnet50": tf.keras.applications.ResNet50}
    if name not in twins:
        return None

    def representative() -> Iterator[list[np.ndarray[Any, Any]]]:
        for feed in Images().feeds():
            yield [feed["image"].transpose(0, 2, 3, 1)]

    tf.keras.utils.set_random_seed(0)
    twin = twins[name](weights=None, classifier_activation=None)
    converter = tf.lite.TFLiteConverter.from_keras_model(twin)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    path = out / "tensorflow.tflite"
    path.write_bytes(converter.convert())
    return path


PEERS: dict[str, Callable[[ModelArtifact, Path, Path], Path]] = {"ours": ours, "ai_edge_quantizer": ai_edge_quantizer}
COLUMNS = ("fp32", *PEERS, "tensorflow")


def files(name: str, out: Path) -> dict[str, Path]:
    """The network's file from every tool; a tool that fails is reported and left out."""
    artifact = networks.build(name)
    made = {"fp32": targets.get("tflite").lower(artifact.original(), out, name="fp32").path}
    for peer, make in PEERS.items():
        try:
            made[peer] = make(artifact, made["fp32"], out)
        except Exception as error:
            print(f"{name}: {peer} failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    with quiet():
        twin = tensorflow(name, out)
    return made if twin is None else {**made, "tensorflow": twin}


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
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    ratios = []
    print(f"calibrated on {CALIBRATION_IMAGES} images; milliseconds per image, batch 1")
    print(f"{'network':20} threads partitions |" + "".join(f"{label:>18}" for label in COLUMNS), end="")
    print(" | fp32/ours  ours/best peer   band")
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            made = files(name, Path(folder))
            for threads in arguments.threads:
                candidates = [candidate(label, path, threads) for label, path in made.items()]
                taken = dict(zip(made, interleave(candidates, seconds_per_candidate=arguments.seconds), strict=True))
                samples = {label: samples for label, (_, samples) in taken.items()}
                medians = {label: statistics.median(values) for label, values in samples.items()}
                best = min((medians[label], label) for label in medians if label not in ("fp32", "ours"))
                ratio = medians["ours"] / best[0]
                ratios.append(ratio)
                band = half_spread(samples["ours"]) + half_spread(samples[best[1]])
                cells = "".join(f"{medians.get(label, math.nan) / 1e6:18.3f}" for label in COLUMNS)
                print(f"{name:20} {threads:7} {partitions(made['ours']):10} |{cells}", end="")
                print(f" |{medians['fp32'] / medians['ours']:9.2f}x {ratio:15.3f} {band:6.1%}", flush=True)
    print(f"geometric mean of ours / best peer: {statistics.geometric_mean(ratios):.3f}")


if __name__ == "__main__":
    main()
