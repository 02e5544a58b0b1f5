"""ONNX Runtime side by side: ours, ``quantize_static``, NNCF and FP32 on published networks, interleaved in one run.

    python tests/benchmarks/bench_onnx.py [--networks resnet18 …] [--threads 1 2] [--batch 1 8]

Every peer gets the same FP32 file and calibration images and its documented best setting for x86 CPUs: uint8
activations, int8 weights per channel, and onnxruntime's own pre-processing before ``quantize_static``.
A ratio below 1 means that ours is faster. The band is half the spread between the quartiles of both, in percent.
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

import networks
import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch.utils.data import Dataset

import targets
from pipeline.core import ModelArtifact
from pipeline.data import from_dataset
from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.benchmark import Candidate, interleave
from pipeline.stages.quantize import quantize
from targets.onnx.session import session_options

CALIBRATION_IMAGES = 16


class Images(Dataset):  # type: ignore[type-arg]
    """Seeded images as a dataset of ours, and one by one for the peers."""

    def __init__(self) -> None:
        self.images = networks.images(CALIBRATION_IMAGES, seed=1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> object:
        return self.images[index]

    def feeds(self) -> Iterator[dict[str, np.ndarray]]:
        for image in self.images:
            yield {"image": image.unsqueeze(0).numpy()}


def ours(artifact: ModelArtifact, fp32: Path, out: Path) -> Path:  # noqa: ARG001
    samples = from_dataset(Images(), artifact.inputs)
    config = QuantizeConfig(observers=("minmax",))
    program = quantize(artifact, config, samples, budget=Budget(metric="agreement"))
    return targets.get("onnx").lower(program, out, name="ours").path


def static(artifact: ModelArtifact, fp32: Path, out: Path) -> Path:  # noqa: ARG001
    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds = Images().feeds()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    prepared, path = out / "prepared.onnx", out / "quantize_static.onnx"
    quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return path


def nncf_int8(artifact: ModelArtifact, fp32: Path, out: Path) -> Path:  # noqa: ARG001
    import nncf

    nncf.set_log_level(logging.ERROR)
    model = nncf.quantize(onnx.load(fp32), nncf.Dataset(list(Images().feeds())), subset_size=CALIBRATION_IMAGES)
    onnx.save(model, out / "nncf.onnx")
    return out / "nncf.onnx"


PEERS: dict[str, Callable[[ModelArtifact, Path, Path], Path]] = {
    "ours": ours,
    "quantize_static": static,
    "nncf": nncf_int8,
}


def files(name: str, out: Path) -> dict[str, Path]:
    """The network's file from every tool; a tool that fails is reported and left out."""
    artifact = networks.build(name)
    made = {"fp32": targets.get("onnx").lower(artifact.original(), out, name="fp32").path}
    for peer, make in PEERS.items():
        try:
            made[peer] = make(artifact, made["fp32"], out)
        except Exception as error:
            print(f"{name}: {peer} failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    return made


def candidate(label: str, path: Path, threads: int, batch: int) -> Candidate:
    session = onnxruntime.InferenceSession(path, session_options(threads), providers=["CPUExecutionProvider"])
    feeds = {"image": networks.images(batch, seed=2).numpy()}
    return Candidate(runtime=label, device="cpu", call=lambda: session.run(None, feeds))


def measure(made: dict[str, Path], threads: int, batch: int, seconds: float) -> dict[str, tuple[int, ...]]:
    """Samples in nanoseconds per tool."""
    candidates = [candidate(label, path, threads, batch) for label, path in made.items()]
    taken = interleave(candidates, seconds_per_candidate=seconds)
    return {label: samples for label, (_, samples) in zip(made, taken, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", nargs="+", default=list(networks.FACTORIES), choices=list(networks.FACTORIES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time per tool and row")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    ratios = []
    print(f"{'network':20} threads batch |" + "".join(f"{label:>17}" for label in ("fp32", *PEERS)), end="")
    print("   (ms) | fp32/ours  ours/best peer   band")
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            made = files(name, Path(folder))
            for threads in arguments.threads:
                for batch in arguments.batch:
                    taken = measure(made, threads, batch, arguments.seconds)
                    medians = {label: statistics.median(samples) for label, samples in taken.items()}
                    best = min((medians[label], label) for label in medians if label not in ("fp32", "ours"))
                    ratio = medians["ours"] / best[0]
                    ratios.append(ratio)
                    band = half_spread(taken["ours"]) + half_spread(taken[best[1]])
                    cells = "".join(f"{medians.get(label, math.nan) / 1e6:17.2f}" for label in ("fp32", *PEERS))
                    print(f"{name:20} {threads:7} {batch:5} |{cells}        |", end="")
                    print(f"{medians['fp32'] / medians['ours']:9.2f}x {ratio:15.3f} {band:6.1%}", flush=True)
    print(f"geometric mean of ours / best peer: {statistics.geometric_mean(ratios):.3f}")


def half_spread(samples: tuple[int, ...]) -> float:
    """Half the distance between the quartiles, relative to the median."""
    low, middle, high = statistics.quantiles(samples, n=4)
    return (high - low) / 2 / middle


if __name__ == "__main__":
    main()
