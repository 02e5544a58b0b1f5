"""ONNX Runtime side by side: ours, ``quantize_static``, NNCF and FP32 on published networks, interleaved in one run.

    python tests/benchmarks/bench_onnx.py [--networks resnet18 …] [--threads 1 2] [--batch 1 8]
                                          [--files FOLDER] [--results tests/benchmarks/results/onnx.json]

Every peer gets the same FP32 file and calibration images and its documented best setting for x86 CPUs: uint8
activations, int8 weights per channel, and onnxruntime's own pre-processing before ``quantize_static``.
A ratio below 1 means that ours is faster. The band is half the spread between the quartiles of both, in percent.

``--files`` keeps what the tools made, so that a run can be cut into pieces: with ``--threads`` and nothing after it,
files are made and nothing is measured. ``--results`` adds the rows to a file, and writes them as a table beside it.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch.utils.data import Dataset

import targets
from pipeline.core import Model
from pipeline.data.open import from_dataset
from pipeline.machine.processor import cpu_name
from pipeline.machine.timing import Candidate, interleave
from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.quantize import quantize
from targets.onnx.placement import kernels
from targets.onnx.session import session_options

CALIBRATION_IMAGES = 16

Row = dict[str, Any]


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


def fp32(model: Model, out: Path) -> None:
    targets.get("onnx").lower(model.original(), out, name="fp32")


def ours(model: Model, out: Path) -> None:
    """Also writes what the export took: seconds, and the peak memory of the process in bytes."""
    samples = from_dataset(Images(), model.inputs)
    config = QuantizeConfig(observers=("minmax",), equalisation=False, mixed_precision=False)
    program = quantize(model, config, samples, budget=Budget(metric="agreement"))
    started = time.perf_counter()
    targets.get("onnx").lower(program, out, name="ours")
    taken = {
        "export_s": time.perf_counter() - started,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    (out / "ours.json").write_text(json.dumps(taken), encoding="utf-8")


def static(model: Model, out: Path) -> None:  # noqa: ARG001
    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds = Images().feeds()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    prepared = out / "prepared.onnx"
    quant_pre_process(str(out / "fp32.onnx"), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(out / "quantize_static.onnx"),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def nncf_int8(model: Model, out: Path) -> None:  # noqa: ARG001
    import nncf

    nncf.set_log_level(logging.ERROR)
    images = nncf.Dataset(list(Images().feeds()))
    onnx.save(nncf.quantize(onnx.load(out / "fp32.onnx"), images, subset_size=CALIBRATION_IMAGES), out / "nncf.onnx")


TOOLS: dict[str, Callable[[Model, Path], None]] = {
    "fp32": fp32,
    "ours": ours,
    "quantize_static": static,
    "nncf": nncf_int8,
}


def files(name: str, out: Path) -> dict[str, Path]:
    """The network's file from every tool, made where it is missing; a tool that fails is reported and left out."""
    out.mkdir(parents=True, exist_ok=True)
    made = {tool: out / f"{tool}.onnx" for tool in TOOLS}
    missing = [tool for tool, path in made.items() if not path.exists()]
    model = networks.build(name) if missing else None
    for tool in missing:
        assert model is not None
        try:
            TOOLS[tool](model, out)
        except Exception as error:
            print(f"{name}: {tool} failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    return {tool: path for tool, path in made.items() if path.exists() and loads(name, tool, path)}


def loads(name: str, tool: str, path: Path) -> bool:
    """Whether onnxruntime takes a tool's file; says why not."""
    try:
        onnxruntime.InferenceSession(path, session_options(1), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for every status code
        print(f"{name}: onnxruntime refuses the file of {tool}: {str(error).splitlines()[0]}")
        return False
    return True


def candidate(label: str, path: Path, threads: int, batch: int) -> Candidate:
    session = onnxruntime.InferenceSession(path, session_options(threads), providers=["CPUExecutionProvider"])
    feeds = {"image": networks.images(batch, seed=2).numpy()}
    return Candidate(runtime=label, device="cpu", call=lambda: session.run(None, feeds))


def measure(name: str, made: dict[str, Path], threads: int, batch: int, seconds: float) -> Row:
    """One row: medians in nanoseconds and half spreads per tool, and where the time of ours goes."""
    candidates = [candidate(label, path, threads, batch) for label, path in made.items()]
    taken = interleave(candidates, seconds_per_candidate=seconds)
    samples = {label: values for label, (_, values) in zip(made, taken, strict=True)}
    row: Row = {
        "network": name,
        "threads": threads,
        "batch": batch,
        "median_ns": {label: round(statistics.median(values)) for label, values in samples.items()},
        "half_spread": {label: round(half_spread(values), 4) for label, values in samples.items()},
    }
    if threads == batch == 1:
        row["ours_time_share"] = time_share(made["ours"])
        row |= json.loads((made["ours"].parent / "ours.json").read_text(encoding="utf-8"))
    return row


def time_share(path: Path) -> dict[str, float]:
    """The share of the running time per kind of operator, largest first, down to 3 %."""
    by_operator: Counter[str] = Counter()
    for kernel in kernels(targets.get("onnx").open(path)):
        by_operator[kernel.op] += kernel.time_ns
    total = by_operator.total()
    return {op: round(time_ns / total, 3) for op, time_ns in by_operator.most_common() if time_ns > 0.03 * total}


def half_spread(samples: tuple[int, ...]) -> float:
    """Half the distance between the quartiles, relative to the median."""
    low, middle, high = statistics.quantiles(samples, n=4)
    return (high - low) / 2 / middle


def best_peer(row: Row) -> str:
    """The fastest of the other int8 files."""
    return min((label for label in row["median_ns"] if label not in ("fp32", "ours")), key=row["median_ns"].__getitem__)


def ratio(row: Row) -> float:
    """Our median over the best peer's."""
    return float(row["median_ns"]["ours"] / row["median_ns"][best_peer(row)])


def table(rows: list[Row]) -> str:
    """The rows in Markdown, with their geometric mean."""
    columns = (
        "network",
        "threads",
        "batch",
        *(f"{tool} ms" for tool in TOOLS),
        "fp32 / ours",
        "ours / best peer",
        "band",
    )
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    for row in rows:
        medians, spreads = row["median_ns"], row["half_spread"]
        cells = " | ".join(f"{medians[tool] / 1e6:.2f}" if tool in medians else "–" for tool in TOOLS)
        band = spreads["ours"] + spreads[best_peer(row)]
        lines.append(
            f"| {row['network']} | {row['threads']} | {row['batch']} | {cells} "
            f"| {medians['fp32'] / medians['ours']:.2f} | {ratio(row):.3f} | {band:.1%} |"
        )
    lines.append(f"\nGeometric mean of ours / best peer: {statistics.geometric_mean(map(ratio, rows)):.3f}.")
    lines.append("A dash: the tool made no file, or one that this onnxruntime refuses.\n")
    for row in rows:
        if "ours_time_share" in row:
            shares = ", ".join(f"{op} {share:.0%}" for op, share in row["ours_time_share"].items())
            lines.append(
                f"- {row['network']}: {shares}; exported in {row['export_s']:.1f} s, "
                f"peak {row['peak_bytes'] / 2**30:.2f} GiB with calibration"
            )
    return "\n".join(lines) + "\n"


def add(rows: list[Row], path: Path) -> None:
    """Put rows into the results, in place of earlier ones of the same setting, and the table beside them."""
    known = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    by_setting = {(row["network"], row["threads"], row["batch"]): row for row in (*known, *rows)}
    order = list(networks.FACTORIES)
    kept = sorted(by_setting.values(), key=lambda row: (order.index(row["network"]), row["threads"], row["batch"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"cpu": cpu_name(), "onnxruntime": onnxruntime.__version__}
    path.write_text(json.dumps({**about, "rows": kept}, indent=1) + "\n", encoding="utf-8")
    heading = f"# ONNX Runtime {onnxruntime.__version__}, {cpu_name()}\n\nWritten by `bench_onnx.py`.\n\n"
    path.with_suffix(".md").write_text(heading + table(kept), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", nargs="+", default=list(networks.FACTORIES), choices=list(networks.FACTORIES))
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time per tool and row")
    parser.add_argument("--files", type=Path, help="folder to keep the tools' files in")
    parser.add_argument("--results", type=Path, help="JSON file to add the rows to")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.networks:
            made = files(name, (arguments.files or Path(temporary)) / name)
            for threads in arguments.threads:
                for batch in arguments.batch:
                    rows.append(measure(name, made, threads, batch, arguments.seconds))
                    if arguments.results:
                        add(rows, arguments.results)
    if rows:
        print(table(rows))


if __name__ == "__main__":
    main()
