"""How small and fast the demo's network gets at what accuracy, with all 60,000 training images.

Run ``python -m tests.benchmarks.compress_fashion_mnist``: 15 minutes on 2 cores. It needs Debian's package
``dataset-fashion-mnist``. It prints, and writes to ``tests/benchmarks/results/compression.json``, one part at a time:

* ``2.5x`` and ``5x``: at that many times fewer MACs, the accuracy on the 10,000 test images, against the original's;
* ``comparison``: over 3 seeds and equal epochs, ours against plain global magnitude pruning and fine-tuning without a
  teacher, which is given the better of two learning rates;
* ``int8``: the 5x student quantized and exported: accuracy and latency against the original's FP32 in each runtime.

``--part`` runs some of them and leaves the others' results in the file. ``--epochs`` and ``--images`` make it shorter;
the figures then are not those of the full run, and the file says so. Nothing is chosen by the test images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

import targets
from calibration_data.fashion_mnist.pack import CLASSES
from calibration_data.fashion_mnist.train import HERE, IMAGE, PREPROCESSING, samples
from pipeline.core import Model
from pipeline.data.samples import SampleSet
from pipeline.machine.processor import all_cores, cpu_name
from pipeline.models.capture import count_macs, count_parameters
from pipeline.models.load import load
from pipeline.models.structure import restore_module, save_module
from pipeline.recipe import (
    Augmentation,
    Budget,
    DistillConfig,
    ModelSource,
    PruneConfig,
    QuantizeConfig,
    TfliteConfig,
)
from pipeline.stages.benchmark import benchmark
from pipeline.stages.distill import distill
from pipeline.stages.export import export
from pipeline.stages.prune import prune
from pipeline.stages.quantize import quantize
from pipeline.tasks.evaluation import evaluate

RESULTS = Path(__file__).parent / "results" / "compression.json"
BUDGETS = {"2.5x": (0.4, 0.002), "5x": (0.2, 0.010)}  # share of the MACs, top-1 that it may cost
# A network this small spends its time on calling operators, and on channels that only fill a register up: without two
# of its six blocks, widths in steps of 16, it is 1.5 times as fast in onnxruntime at the same MACs (timed untrained).
FOR_SPEED: dict[str, dict[str, Any]] = {"5x": {"blocks_ratio": 0.5, "round_to": 16}}
PARTS = (*BUDGETS, "comparison", "int8")
RUNTIMES, SPEEDUP, INT8_DROP = ("onnx", "tflite"), 5.0, 0.010
COMPARISON_IMAGES, COMPARISON_EPOCHS, SEEDS = 16_000, 3, (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Setup:
    """What every part works with.

    Attributes:
        top1: The original's accuracy on the test images.
        fast_bf16: Whether the processor multiplies bfloat16 by itself.
    """

    original: Model
    top1: float
    train: SampleSet
    test: SampleSet
    epochs: int
    fast_bf16: bool
    students: Path

    def training(self, *, epochs: int, alpha: float, learning_rate: float) -> DistillConfig:
        """The same training for everyone, in the precision that the processor is fastest in."""
        return DistillConfig(
            epochs=epochs,
            alpha=alpha,
            learning_rate=learning_rate,
            precision="bf16" if self.fast_bf16 else "fp32",
            augment=Augmentation(horizontal_flip=True),
        )


def ours(share: float, **others: Any) -> PruneConfig:
    """Our pruning to a share of the MACs."""
    return PruneConfig(macs_ratio=share, importance="activation", allocation="sensitivity", **others)


def compress(
    setup: Setup, pruning: PruneConfig, training: DistillConfig, train: SampleSet, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Prune, distill, and measure on the test set."""
    started = time.monotonic()
    pruned = prune(setup.original, pruning, train.take(512), seed=seed)
    student = distill(pruned, training, train, seed=seed)
    return student.module, {
        "macs": count_macs(student.module, student.inputs),
        "parameters": count_parameters(student.module),
        "top1": evaluate(student.module, setup.test)["top1"],
        "pruning": pruning.model_dump(mode="json", exclude_defaults=True),
        "training": training.model_dump(mode="json", exclude_defaults=True),
        "training_images": len(train),
        "seconds": round(time.monotonic() - started, 1),
        "threads": torch.get_num_threads(),
    }


def to_budget(setup: Setup, name: str) -> dict[str, Any]:
    """Compress to one budget, and keep the student for ``int8``."""
    share, allowed = BUDGETS[name]
    training = setup.training(epochs=setup.epochs, alpha=0.9, learning_rate=0.1)
    student, found = compress(setup, ours(share, **FOR_SPEED.get(name, {})), training, setup.train, seed=0)
    setup.students.mkdir(parents=True, exist_ok=True)
    save_module(student, setup.students / f"{name}.safetensors")
    macs, top1 = count_macs(setup.original.module, setup.original.inputs), setup.top1
    met = found["macs"] <= share * macs and top1 - found["top1"] <= allowed
    print(f"{name}: {macs / found['macs']:.2f}x fewer MACs, top-1 {found['top1']:.2%}", flush=True)
    return {
        **found,
        "macs_reduction": macs / found["macs"],
        "drop": top1 - found["top1"],
        "allowed_drop": allowed,
        "met": met,
    }


def contestants(setup: Setup) -> dict[str, tuple[PruneConfig, DistillConfig]]:
    """Ours and the plain way at equal MACs and epochs."""
    share = BUDGETS["5x"][0]
    plain = PruneConfig(macs_ratio=share, importance="l2", allocation="importance")
    chosen = {
        "ours": (ours(share), 0.9, 0.1),
        "magnitude, no teacher, rate 0.1": (plain, 0.0, 0.1),
        "magnitude, no teacher, rate 0.05": (plain, 0.0, 0.05),
    }
    return {
        name: (pruning, setup.training(epochs=COMPARISON_EPOCHS, alpha=alpha, learning_rate=rate))
        for name, (pruning, alpha, rate) in chosen.items()
    }


def contest(setup: Setup, name: str, seed: int) -> dict[str, Any]:
    """One contestant's score."""
    return compress(setup, *contestants(setup)[name], setup.train.take(COMPARISON_IMAGES), seed)[1]


def compared(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Every contestant's runs, one per seed, and our margin over the better of the others."""
    result: dict[str, Any] = {"epochs": COMPARISON_EPOCHS, "seeds": SEEDS}
    for name, own in runs.items():
        scores = [run["top1"] for run in own]
        result[name] = {"runs": own, "mean": statistics.mean(scores), "sd": statistics.stdev(scores)}
        print(f"{name}: top-1 {result[name]['mean']:.2%} ± {result[name]['sd']:.2%} over {len(SEEDS)} seeds")
    baseline = max((name for name in runs if name != "ours"), key=lambda name: result[name]["mean"])
    margins = [a["top1"] - b["top1"] for a, b in zip(runs["ours"], runs[baseline], strict=True)]
    result["margin"] = {"over": baseline, "mean": statistics.mean(margins), "sd": statistics.stdev(margins)}
    print(f"margin: {result['margin']['mean']:.2%} ± {result['margin']['sd']:.2%}")
    return result


def begin(setup: Setup, part: str, pool: Executor) -> Callable[[], dict[str, Any]]:
    """Hand a part's trainings to the pool; what is returned waits for them and gives the part's result."""
    if part in BUDGETS:
        return pool.submit(to_budget, setup, part).result
    if part == "comparison":
        runs = {name: [pool.submit(contest, setup, name, seed) for seed in SEEDS] for name in contestants(setup)}
        return lambda: compared({name: [run.result() for run in own] for name, own in runs.items()})
    return lambda: int8(setup)


def int8(setup: Setup) -> dict[str, Any]:
    """Quantize the 5x student, export it, and time it beside the original's FP32 in the same runtime."""
    student = restore_module(setup.original.reference, setup.students / "5x.safetensors")
    float_student = Model(
        module=student, reference=setup.original.reference, inputs=(IMAGE,), classes=setup.original.classes
    )
    fitting, held_out = setup.train.split(2_000, seed=0)
    quantized = quantize(float_student, QuantizeConfig(), fitting.take(512), held_out=held_out, budget=Budget())
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        options = {"tflite": TfliteConfig(reference_kernels=False)}  # which take a minute for what is not asked here
        files = export(quantized, [targets.get(name, options.get(name)) for name in RUNTIMES], Path(folder))
        _, records = benchmark(quantized, files, setup.test, root=Path(folder))
    for record in records:
        assert record.metrics is not None, record.reason
        (latency,) = (entry for entry in record.latency if entry.kind == "measured" and entry.threads == 1)
        drop = setup.top1 - record.metrics["top1"]
        speedup = latency.speedup_vs_fp32_same_runtime
        result[record.target] = {
            "top1": record.metrics["top1"],
            "drop": drop,
            "median_ns": latency.median_ns,
            "threads": latency.threads,
            "speedup_vs_fp32_same_runtime": speedup,
            "met": speedup >= SPEEDUP and drop <= INT8_DROP,
        }
        print(f"{record.target}: {speedup:.2f}x, top-1 {record.metrics['top1']:.2%} ({-drop:+.2%})")
    return result


def table(result: dict[str, Any]) -> str:
    """The results as README shows them."""
    original = result["original"]
    lines = [
        "| | MACs | parameters | top-1 | against the original |",
        "|---|---|---|---|---|",
        f"| original, FP32 | {original['macs'] / 1e6:.1f} M | {original['parameters']:,} | {original['top1']:.2%} | |",
    ]
    for name in BUDGETS:
        row = result[name]
        lines.append(
            f"| pruned and distilled, {row['training']['epochs']} epochs | {row['macs'] / 1e6:.1f} M "
            f"({row['macs_reduction']:.2f}× fewer) | {row['parameters']:,} | {row['top1']:.2%} | {-row['drop']:+.2%} |"
        )
    for name in RUNTIMES:
        row, student = result["int8"][name], result["5x"]
        lines.append(
            f"| 5x as INT8 in {name}, {row['speedup_vs_fp32_same_runtime']:.2f}× as fast as FP32 | "
            f"{student['macs'] / 1e6:.1f} M | {student['parameters']:,} | {row['top1']:.2%} | {-row['drop']:+.2%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="once per part; all when absent")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--students", type=Path, default=Path("reports/compression"), help="where students are kept")
    arguments = parser.parse_args()
    started = time.monotonic()

    with tempfile.TemporaryDirectory() as scratch:
        train, test = samples("train", Path(scratch)), samples("t10k", Path(scratch))
    source = ModelSource(
        checkpoint=Path("model.safetensors"),
        factory="calibration_data.fashion_mnist.network:resnet",
        inputs=(IMAGE,),
        classes=CLASSES,
    )
    original = load(source, HERE)
    setup = Setup(
        original=original,
        top1=evaluate(original.module, test)["top1"],
        train=train.take(arguments.images),
        test=test,
        epochs=arguments.epochs,
        fast_bf16=torch.cpu._is_avx512_bf16_supported(),
        students=arguments.students,
    )
    head = {
        "original": {
            "top1": setup.top1,
            "macs": count_macs(original.module, original.inputs),
            "parameters": count_parameters(original.module),
        },
        "preprocessing": PREPROCESSING.model_dump(mode="json"),
        "cpu": cpu_name(),
        "torch": torch.__version__,
    }
    print(f"original: top-1 {head['original']['top1']:.2%}, {head['original']['macs'] / 1e6:.1f} M MACs", flush=True)
    parts = [part for part in PARTS if part in (arguments.part or PARTS)]  # the one that measures time comes last
    # One training per core: two threads on one training are only 1.7 times as fast as one.
    with ProcessPoolExecutor(
        all_cores(), mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        finish = {part: begin(setup, part, pool) for part in parts}
        for part in parts:
            found = finish[part]()
            before = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            result = {**before, **head, part: found}
            if part == parts[-1] and parts == list(PARTS):
                result["all_in_one_go"] = {"seconds": round(time.monotonic() - started), "epochs": arguments.epochs}
                print(f"all parts in one go: {result['all_in_one_go']['seconds'] / 60:.1f} minutes")
            arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    if result.keys() >= set(PARTS):
        print(table(result))


if __name__ == "__main__":
    main()
