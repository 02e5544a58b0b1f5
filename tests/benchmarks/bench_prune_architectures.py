"""Every test architecture pruned to half its multiply-accumulates: what goes, what stays and why, and that it runs.

    python tests/benchmarks/bench_prune_architectures.py [--results tests/benchmarks/results/prune_architectures.md]

The difference is the largest between torch and onnxruntime on the exported file, relative to the largest output.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # the tests' networks, which are no part of the package

import targets
from pipeline.core import Model
from pipeline.models.capture import count_macs, count_parameters
from pipeline.stages.prune import prune
from tests.networks.architectures import ARCHITECTURES, Architecture
from tests.pipeline.stages.prune.halving import to_half

HEADER = "| network | MACs kept | parameters kept | ONNX against torch | left alone |\n|---|---|---|---|---|"


def main() -> None:
    """Print the table, row by row."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--results", type=Path, help="Markdown file to write")
    results: Path | None = arguments.parse_args().results
    lines = [HEADER]
    print(HEADER)
    for architecture in ARCHITECTURES.values():
        lines.append(row(architecture))
        print(lines[-1], flush=True)
    if results is not None:
        results.write_text("\n".join(lines) + "\n")


def row(architecture: Architecture) -> str:
    """Prune one network to half its cost and describe the result."""
    before = architecture.model()
    after = prune(before, to_half(architecture.name), architecture.samples(64))
    record = after.history[-1]
    macs = record.macs / count_macs(before.module, before.inputs)
    parameters = record.parameters / count_parameters(before.module)
    gone = [f"{block['block']} removed whole" for block in record.details["blocks"] if block["removed"]]
    left = "; ".join([*gone, *(f"`{layer.layer}`: {layer.reason}" for layer in record.skipped)]).replace("|", "/")
    return f"| {architecture.name} | {macs:.2f} | {parameters:.2f} | {onnx_error(after, architecture):.0e} | {left} |"


def onnx_error(model: Model, architecture: Architecture) -> float:
    """Largest difference of the exported file's outputs, relative to the largest output."""
    (batch,) = architecture.samples(1).batches(1)
    with torch.no_grad():
        outputs = model.module(*batch.inputs)
    expected = outputs if isinstance(outputs, tuple) else (outputs,)
    onnx = targets.get("onnx")
    with tempfile.TemporaryDirectory() as folder:
        session = onnx.load(onnx.lower(model, Path(folder), name=architecture.name), threads=1)
    found = session.run(tuple(tensor.numpy() for tensor in batch.inputs))
    errors = [(torch.from_numpy(f) - e).abs().max() / e.abs().max() for f, e in zip(found, expected, strict=True)]
    return float(max(errors))


if __name__ == "__main__":
    main()
