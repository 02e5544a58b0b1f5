"""Latency budgets: what was asked for, and what the pruned network measures afterwards, beside the original.

    python tests/benchmarks/bench_prune_latency.py [--results tests/benchmarks/results/prune_latency.json]

The demo's network, FP32, one thread, batch 1. Pruning stops by its own measurements; the ratio printed here comes from
freshly lowered and loaded files, timed once more in alternating rounds. It must lie within 10 % of what was asked for.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import targets
from calibration_data.fashion_mnist.train import IMAGE, load_trained
from pipeline import PruneConfig, from_module, prune
from pipeline.machine.processor import cpu_name
from pipeline.stages.prune.limits import interleaved_medians, load_session

ASKED = (("onnx", 0.7), ("onnx", 0.5), ("onnx", 0.35), ("tflite", 0.5))
TOLERANCE = 0.1


def main() -> None:
    """Prune to each budget, time the results again, and fail where one is too far off."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--results", type=Path, help="JSON file to write")
    results: Path | None = arguments.parse_args().results
    model = from_module(load_trained(), inputs=[IMAGE])
    rows = []
    for name, ratio in ASKED:
        target = targets.get(name)
        pruned = prune(model, PruneConfig(latency_ratio=ratio, latency_target=name), target=target)
        candidates = (model.original(), dataclasses.replace(model, module=pruned.module))
        before, after = interleaved_medians(model, tuple(load_session(target, each) for each in candidates))
        record = pruned.history[-1]
        row = {
            "target": name,
            "asked": ratio,
            "measured": round(after / before, 4),
            "original_ns": before,
            "pruned_ns": after,
            "macs": record.macs,
            "prune_s": round(record.duration_s, 1),
        }
        rows.append(row)
        print(f"{name}: asked for {ratio:.2f} of the FP32 latency, measured {after / before:.3f} "
              f"({before / 1e3:.0f} -> {after / 1e3:.0f} us, {record.macs / 1e6:.1f} M MACs)", flush=True)  # fmt: skip
    if results is not None:
        results.write_text(json.dumps({"cpu": cpu_name(), "rows": rows}, indent=2) + "\n")
    assert all(abs(row["measured"] / row["asked"] - 1) <= TOLERANCE for row in rows)


if __name__ == "__main__":
    main()
