"""Records what Apple's Core AI runtime computes for some of the test networks, one sample at a time.

    pip install coreai-torch==0.4.3
    python tests/targets/coreml/core_ai/record.py resnet mobilenet_v3 densenet unet vit

Its CPU runtime runs on Linux. The outputs are kept because it is a preview of 190 MB; the networks and their inputs are
seeded, so only outputs are stored, and a manifest says what made them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.networks.architectures import ARCHITECTURES

HERE = Path(__file__).parent
SAMPLES = 8


async def outputs(asset: Any, name: str, samples: Any) -> Any:
    from coreai.runtime import NDArray

    async with asset.executable() as model:
        function = model.load_function("main")
        results = [await function({name: NDArray(samples[index : index + 1])}) for index in range(len(samples))]
        return np.concatenate([next(iter(result.values())).numpy().copy() for result in results])


def record(name: str) -> None:
    import coreai_torch  # no extra installs it

    architecture = ARCHITECTURES[name]
    (batch,) = architecture.samples(SAMPLES, seed=2).batches(SAMPLES)
    program = torch.export.export(architecture.model().module, (batch.inputs[0][:1],), strict=False)
    (given,) = program.graph_signature.user_inputs
    converter = coreai_torch.TorchConverter()
    converter.add_exported_program(program.run_decompositions(coreai_torch.get_decomp_table()))
    with tempfile.TemporaryDirectory() as folder:
        asset = converter.to_coreai().save_asset(Path(folder) / "model.aimodel")
        results = asyncio.run(outputs(asset, given, batch.inputs[0].numpy()))
    np.savez_compressed(HERE / f"{name}.npz", outputs=results)


if __name__ == "__main__":
    for network in sys.argv[1:]:
        record(network)
    versions = {package: metadata.version(package) for package in ("coreai-core", "coreai-torch", "torch")}
    recorded = sorted(path.stem for path in HERE.glob("*.npz"))
    manifest = {"script": Path(__file__).name, "versions": versions, "samples": SAMPLES, "networks": recorded}
    (HERE / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
