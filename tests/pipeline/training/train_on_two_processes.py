"""Run on one and on two processes by test_training_distributed.py: trains, and each process says how far it came."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core import TensorSpec
from pipeline.data.open import from_dataset
from pipeline.data.samples import Batch
from pipeline.recipe import TrainingConfig
from pipeline.training.loop import fit


def main(folder: Path) -> None:
    """Write this process's weights, the samples it saw and its logs into ``folder``."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(64, 5, generator=generator)
    features[:, 0] = torch.arange(64)  # numbers the samples
    labels = (features[:, 1] > 0).long()
    samples = from_dataset(
        list(zip(features, labels.tolist(), strict=True)), (TensorSpec(name="features", shape=(5,)),)
    )
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
    seen: list[list[int]] = []

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        assert batch.labels is not None
        seen.append(batch.inputs[0][:, 0].int().tolist())
        return functional.cross_entropy(module(batch.inputs[0] / 64), batch.labels)

    config = TrainingConfig(epochs=2, batch_size=16, learning_rate=0.1, checkpoint_minutes=0)
    metric = lambda module: float(module[2].bias.detach().sum())  # noqa: E731
    logs = fit(module, loss, samples, config, seed=0, validate=metric, checkpoint=folder / "training.pt")
    rank = PartialState().process_index
    save_file(module.state_dict(), folder / f"weights{rank}.safetensors")
    (folder / f"rank{rank}.json").write_text(json.dumps({"seen": seen, "losses": [log.loss for log in logs]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
