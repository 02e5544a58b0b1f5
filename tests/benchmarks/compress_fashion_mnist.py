"""How small the demo's network gets at what accuracy, with all 60,000 training images.

Run ``python -m tests.benchmarks.compress_fashion_mnist``: about 25 minutes on 2 idle cores. It needs Debian's package
``dataset-fashion-mnist``. It prints, and writes to ``reports/compression.json``:

* at two budgets, the accuracy on the 10,000 test images, against the original's;
* over 3 seeds and equal epochs, ours against plain global magnitude pruning and fine-tuning without a teacher.

``--epochs`` and ``--images`` make it shorter; the figures then are not those of the full run, and the file says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from calibration_data.fashion_mnist.pack import CLASSES
from calibration_data.fashion_mnist.train import HERE, IMAGE, PREPROCESSING, samples
from pipeline.checkpoint import load
from pipeline.core import ModelArtifact
from pipeline.data import SampleSet
from pipeline.metrics import evaluate
from pipeline.program import count_macs, count_parameters
from pipeline.recipe import Augmentation, DistillConfig, ModelSource, PruneConfig
from pipeline.stages.distill import distill
from pipeline.stages.prune import prune

BUDGETS = {"2.5x": (0.4, 0.002), "5x": (0.2, 0.010)}  # share of the MACs, top-1 that it may cost
FLIP = Augmentation(horizontal_flip=True)
COMPARISON_IMAGES, COMPARISON_EPOCHS, SEEDS = 8_000, 2, (0, 1, 2)


def compress(
    original: ModelArtifact, pruning: PruneConfig, training: DistillConfig, train: SampleSet, test: SampleSet, seed: int
) -> dict[str, Any]:
    """Prune, distill, and measure on the test set, which nothing here chooses by."""
    started = time.monotonic()
    pruned = prune(original, pruning, train.take(512), seed=seed)
    student = distill(pruned, training, train, seed=seed)
    return {
        "macs": count_macs(student.module, student.inputs),
        "parameters": count_parameters(student.module),
        "top1": evaluate(student.module, test)["top1"],
        "pruned_top1": evaluate(pruned.module, test)["top1"],
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--out", type=Path, default=Path("reports/compression.json"))
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        train, test = samples("train", Path(scratch)), samples("t10k", Path(scratch))
    train = train.take(arguments.images)
    source = ModelSource(
        checkpoint=Path("model.safetensors"),
        factory="calibration_data.fashion_mnist.network:resnet",
        inputs=(IMAGE,),
        classes=CLASSES,
    )
    original = load(source, HERE)
    top1, macs = evaluate(original.module, test)["top1"], count_macs(original.module, original.inputs)
    result: dict[str, Any] = {
        "training_images": len(train),
        "epochs": arguments.epochs,
        "preprocessing": PREPROCESSING.model_dump(mode="json"),
        "original": {"top1": top1, "macs": macs, "parameters": count_parameters(original.module)},
        "budgets": {},
        "against_magnitude": {},
    }
    print(f"original: top-1 {top1:.2%}, {macs / 1e6:.1f} M MACs")
    for name, (share, allowed) in BUDGETS.items():
        pruning = PruneConfig(macs_ratio=share, importance="activation", allocation="sensitivity")
        training = DistillConfig(epochs=arguments.epochs, learning_rate=0.1, augment=FLIP)
        found = compress(original, pruning, training, train, test, seed=0)
        met = top1 - found["top1"] <= allowed and found["macs"] <= share * macs
        result["budgets"][name] = {**found, "allowed_drop": allowed, "met": met}
        print(
            f"{name} fewer MACs: top-1 {found['top1']:.2%} ({found['top1'] - top1:+.2%}), {'met' if met else 'missed'}"
        )

    few = train.take(COMPARISON_IMAGES)
    ours = (PruneConfig(macs_ratio=0.2, importance="activation", allocation="sensitivity"), 0.9)
    plain = (PruneConfig(macs_ratio=0.2, importance="l2", allocation="importance"), 0.0)
    for name, (pruning, alpha) in {"ours": ours, "magnitude, no teacher": plain}.items():
        training = DistillConfig(epochs=COMPARISON_EPOCHS, alpha=alpha, augment=FLIP)
        scores = [compress(original, pruning, training, few, test, seed)["top1"] for seed in SEEDS]
        mean, deviation = statistics.mean(scores), statistics.stdev(scores)
        result["against_magnitude"][name] = {"top1": scores, "mean": mean, "sd": deviation}
        print(f"{name}: top-1 {mean:.2%} ± {deviation:.2%} over {len(SEEDS)} seeds")

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
