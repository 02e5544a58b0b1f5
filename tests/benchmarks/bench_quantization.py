"""INT8 accuracy side by side: ours, onnxruntime, ai-edge-quantizer and NNCF on four trained networks, without training.

    python tests/benchmarks/bench_quantization.py [--networks mobilenet_v3 …] [--parts peers ours variants qat]

Every tool gets the same FP32 network and the same calibration images, and nothing else: what ours chooses by is a
quarter of them. Top-1 is on the 10,000 test images of Fashion-MNIST; agreement and SQNR compare the logits with FP32's
on the same images. A peer with several documented settings is tried with each, and counts with its best on the test
images, which only favours it. Results go to ``results/quantization.json``, where rows of networks and parts that were
not run stay, and from there to ``results/quantization.md``. Accuracy does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import targets
from calibration_data.fashion_mnist import train as demo
from calibration_data.fashion_mnist.harder import train as harder
from calibration_data.fashion_mnist.harder.network import NETWORKS as HARDER
from pipeline.core import Model
from pipeline.data.samples import SampleSet
from pipeline.recipe import Augmentation, Budget, QatConfig, QuantizeConfig
from pipeline.stages.quantize import quantize
from pipeline.target import Session
from pipeline.tasks.comparison import Comparison
from pipeline.tasks.lookup import suggested_for
from pipeline.tasks.prediction import Predict, predictor, session_predictor
from pipeline.tasks.scores import Scores

RESULTS = Path(__file__).parent / "results"
CALIBRATION_IMAGES = 256
NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "resnet (demo)": demo.load_trained,
    **{name: partial(harder.load_trained, name) for name in HARDER},
}
OWN, TORCH = "ours", "torch"
OURS = "ours, default settings"
QAT = "ours, one epoch of QAT"


@dataclass(frozen=True)
class Row:
    """What one tool reached with one setting on one network."""

    part: str
    network: str
    tool: str
    setting: str
    runs_in: str
    top1: float
    agreement: float
    sqnr_db: float
    seconds: float


class Bench:
    """One network, its calibration images, and the logits that all tools are compared with."""

    def __init__(self, network: str, out: Path) -> None:
        module = NETWORKS[network]()
        self.network, self.out = network, out
        self.model = Model(module=module, reference=module, inputs=(demo.IMAGE,), outputs=("logits",))
        self.train = demo.committed_samples("train")
        self.calibration = self.train.take(CALIBRATION_IMAGES)
        self._test = list(demo.committed_samples("test").batches(500))
        self._task = suggested_for(module, self.train)
        predict = predictor(module)
        self._reference = [predict(batch.inputs) for batch in self._test]
        self.rows: list[Row] = []

    def feeds(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        for batch in self.calibration.batches(batch_size):
            yield {"image": batch.inputs[0].numpy()}

    def score(self, part: str, tool: str, setting: str, runs_in: str, predict: Predict, seconds: float) -> None:
        comparison, scores = Comparison(), Scores(self._task, labelled=True)
        for batch, reference in zip(self._test, self._reference, strict=True):
            outputs = predict(batch.inputs)
            comparison.update(outputs, reference)
            scores.update(batch.inputs, outputs, reference, batch.labels)
        found = scores.values()
        values = {"top1": found["top1"], "agreement": found["agreement"], "sqnr_db": comparison.sqnr_db}
        row = Row(part, self.network, tool, setting, runs_in, **values, seconds=round(seconds, 1))  # type: ignore[arg-type]
        self.rows.append(row)
        print(
            f"{self.network:14} {tool:28} {setting:28} {runs_in:12} top-1 {row.top1:.2%}  agreement {row.agreement:.2%}"
            f"  {row.sqnr_db:5.1f} dB  {seconds:5.1f} s",
            flush=True,
        )

    def attempt(self, part: str, tool: str, setting: str, runs_in: str, make: Callable[[], Predict]) -> None:
        """Score what ``make`` makes; a peer that fails is reported and left out."""
        started = time.perf_counter()
        try:
            predict = make()
        except Exception as error:
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(f"{self.network:14} {tool} {setting} failed: {first_line}", flush=True)
            return
        self.score(part, tool, setting, runs_in, predict, time.perf_counter() - started)


def float_original(bench: Bench) -> None:
    bench.score("peers", "FP32", "", "torch", predictor(bench.model.module), 0.0)


def onnx_predictor(path: Path) -> Predict:
    target = targets.get("onnx")
    return session_predictor(target.load(target.open(path), threads=1))


def unoptimized_predictor(path: Path) -> Predict:
    """The file exactly as it stands: onnxruntime 1.31 fails to optimize some of NNCF's (uint8 at opset 21)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def predict(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(output) for output in session.run(None, {"image": inputs[0].numpy()}))

    return predict


def peers(bench: Bench) -> None:
    float_original(bench)
    fp32 = targets.get("onnx").lower(bench.model.original(), bench.out, name="fp32").path
    for method in ("MinMax", "Entropy", "Percentile"):
        bench.attempt("peers", "quantize_static", method, "onnxruntime", lambda m=method: static(bench, fp32, m))
    for accurate in (False, True):
        setting = "mixed, full bias correction" if accurate else "default"
        bench.attempt("peers", "NNCF", setting, "onnxruntime", lambda a=accurate: nncf_int8(bench, fp32, accurate=a))
    bench.attempt("peers", "ai-edge-quantizer", "static int8", "LiteRT", lambda: ai_edge_quantizer(bench))


def static(bench: Bench, fp32: Path, method: str) -> Predict:
    """onnxruntime's best for x86: uint8 activations, int8 weights per channel, its own pre-processing first."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = bench.feeds(32)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    prepared, path = bench.out / "prepared.onnx", bench.out / f"static_{method}.onnx"
    quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
    )
    return onnx_predictor(path)


def nncf_int8(bench: Bench, fp32: Path, *, accurate: bool) -> Predict:
    import nncf
    import onnx

    nncf.set_log_level(logging.ERROR)
    options = {"preset": nncf.QuantizationPreset.MIXED, "fast_bias_correction": False} if accurate else {}
    data = nncf.Dataset(list(bench.feeds(1)))
    model = nncf.quantize(onnx.load(fp32), data, subset_size=CALIBRATION_IMAGES, **options)
    path = bench.out / f"nncf_{accurate}.onnx"
    onnx.save(model, path)
    return unoptimized_predictor(path)


def ai_edge_quantizer(bench: Bench) -> Predict:
    from ai_edge_quantizer import quantizer, recipe

    fp32 = targets.get("tflite").lower(bench.model.original(), bench.out, name="fp32").path
    peer = quantizer.Quantizer(str(fp32))
    peer.load_quantization_recipe(recipe.static_wi8_ai8())
    path = bench.out / "ai_edge_quantizer.tflite"
    peer.quantize(peer.calibrate({"serving_default": list(bench.feeds(1))})).export_model(str(path))
    target = targets.get("tflite")
    return session_predictor(target.load(target.open(path), threads=1))


def int8(bench: Bench, config: QuantizeConfig, train: SampleSet | None = None) -> Model:
    return quantize(bench.model, config, bench.calibration, budget=Budget(), train=train)


def ours(bench: Bench, part: str = "ours", tool: str = OURS, config: QuantizeConfig | None = None) -> None:
    """The torch program and every file that runs here; the seconds of a file are those of lowering it."""
    started = time.perf_counter()
    model = int8(bench, config or QuantizeConfig(), bench.train)
    setting = chosen(model)
    bench.score(part, tool, setting, "torch", predictor(model.module), time.perf_counter() - started)

    def lowered(name: str) -> Predict:
        target = targets.get(name)
        file = target.lower(model, bench.out, name=f"ours_{part}")
        session: Session = target.load(file, threads=1)
        return session_predictor(session)

    bench.attempt(part, tool, setting, "onnxruntime", lambda: lowered("onnx"))
    bench.attempt(part, tool, setting, "LiteRT", lambda: lowered("tflite"))


def chosen(model: Model) -> str:
    found = model.history[-1].details["chosen"]
    extras = [name for name in ("equalised", "adaround") if found.get(name)]
    return ", ".join([found["method"], f"{found['bias_correction']} bias correction", *extras])


VARIANTS: dict[str, dict[str, Any]] = {
    **{
        f"{method}{', bias correction' * corrected}": {"observers": (method,), "bias_correction": corrected}
        for method in QuantizeConfig.model_fields["observers"].annotation.__args__[0].__args__
        for corrected in (False, True)
    },
    "all, equalisation": {"equalisation": True},
    "all, AdaRound": {"adaround": True},
}
"""Our own algorithms one at a time: what the defaults are chosen by."""


def variants(bench: Bench) -> None:
    for setting, options in VARIANTS.items():
        config = QuantizeConfig(**{"equalisation": False, "mixed_precision": False, **options})
        bench.attempt("variants", "ours", setting, "torch", lambda config=config: predictor(int8(bench, config).module))


def qat(bench: Bench) -> None:
    training = QatConfig(epochs=1, augment=Augmentation(horizontal_flip=True))
    ours(bench, "qat", QAT, QuantizeConfig(qat=training))


PARTS: dict[str, Callable[[Bench], None]] = {"peers": peers, "ours": ours, "variants": variants, "qat": qat}


def tables(rows: list[Row]) -> str:
    """The results as Markdown: first against the peers, then our own variants."""
    return (
        f"Top-1 on 10,000 test images, and SQNR of the logits; {CALIBRATION_IMAGES} calibration images.\n\n"
        f"{against_peers(rows)}\nOurs, one algorithm at a time:\n\n{one_at_a_time(rows)}"
    )


def against_peers(rows: list[Row]) -> str:
    """The table of every tool's best, which README shows, too."""
    lines = {
        "FP32": ("FP32", "torch"),
        "**ours, post-training**": (OURS, "torch"),
        "the same in onnxruntime": (OURS, "onnxruntime"),
        "the same in LiteRT": (OURS, "LiteRT"),
        "onnxruntime `quantize_static`, its best of 3": ("quantize_static", "onnxruntime"),
        "NNCF, its best of 2": ("NNCF", "onnxruntime"),
        "ai-edge-quantizer": ("ai-edge-quantizer", "LiteRT"),
        "**ours, one epoch of QAT**": (QAT, "torch"),
    }
    return _table("INT8", {label: partial(best, rows, tool=tool, runs_in=at) for label, (tool, at) in lines.items()})


def one_at_a_time(rows: list[Row]) -> str:
    """The table that our defaults are chosen by."""
    settings = dict.fromkeys(row.setting for row in rows if row.part == "variants")
    return _table("Ranges", {name: partial(best, rows, tool=OWN, runs_in=TORCH, setting=name) for name in settings})


def _table(corner: str, lines: dict[str, Callable[[str], Row | None]]) -> str:
    body = "".join(
        f"| {label} |{''.join(f' {cell(find(network))} |' for network in NETWORKS)}\n" for label, find in lines.items()
    )
    return f"| {corner} |{''.join(f' {network} |' for network in NETWORKS)}\n|{'---|' * (len(NETWORKS) + 1)}\n{body}"


def best(rows: list[Row], network: str, tool: str, runs_in: str, setting: str | None = None) -> Row | None:
    found = [
        row
        for row in rows
        if (row.network, row.tool, row.runs_in) == (network, tool, runs_in) and setting in (None, row.setting)
    ]
    return max(found, key=lambda row: (row.top1, row.sqnr_db), default=None)


def cell(row: Row | None) -> str:
    if row is None:
        return "–"
    return f"{row.top1:.2%}" if math.isinf(row.sqnr_db) else f"{row.top1:.2%}, {row.sqnr_db:.1f} dB"


def saved() -> list[Row]:
    path = RESULTS / "quantization.json"
    return [Row(**row) for row in json.loads(path.read_text())["rows"]] if path.exists() else []


def save(new: list[Row], network: str, part: str) -> None:
    rows = [*(row for row in saved() if (row.network, row.part) != (network, part)), *new]
    content = {"command": "python tests/benchmarks/bench_quantization.py", "rows": [asdict(row) for row in rows]}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quantization.json").write_text(json.dumps(content, indent=1, allow_nan=True) + "\n")
    (RESULTS / "quantization.md").write_text(tables(rows))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for network in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(network, Path(folder))
            for part in arguments.parts:
                PARTS[part](bench)
                save([row for row in bench.rows if row.part == part], network, part)
    print(tables(saved()))


if __name__ == "__main__":
    main()
