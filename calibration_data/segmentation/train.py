"""Train the segmentation demo's checkpoint in FP32 on composed scenes.

Run ``python -m calibration_data.segmentation.train``; about 8 minutes on one core. Writes ``model.safetensors`` and
prints the mean intersection over union on the test scenes, which nothing else uses.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from calibration_data.scenes.compose import CLASSES, SIZE, compose_all
from calibration_data.scenes.pack import IMAGE, PREPROCESSING, SCENES
from calibration_data.segmentation.network import unet
from calibration_data.training import in_memory, scores, stored, train, trained
from pipeline.data.labels import mask
from pipeline.data.samples import Batch, SampleSet
from pipeline.recipe import TrainingConfig

WEIGHTS = Path(__file__).parent / "model.safetensors"
TRAINING_SCENES = 8000
FORM = mask(len(CLASSES) + 1, SIZE, SIZE)
TRAINING = TrainingConfig(
    epochs=8, batch_size=64, optimizer="adamw", learning_rate=0.006, weight_decay=0.01, ema=0.99, warmup_ratio=0.1
)


def cross_entropy(module: nn.Module, batch: Batch) -> Tensor:
    """Softmax cross entropy of each pixel."""
    assert batch.labels is not None
    return functional.cross_entropy(module(*batch.inputs), batch.labels)


def committed_samples(name: str) -> SampleSet:
    """The scenes that are kept: ``train`` or ``test``."""
    return stored(SCENES / f"{name}.npz", IMAGE, PREPROCESSING, FORM, labels="masks")


def load_trained() -> nn.Module:
    """The trained network, in eval mode."""
    return trained(unet, WEIGHTS)


def main() -> None:
    """Train, save, and report the accuracy."""
    scenes = compose_all("train", range(TRAINING_SCENES)).arrays()
    train(unet, cross_entropy, in_memory(scenes, IMAGE, PREPROCESSING, FORM, labels="masks"), TRAINING, WEIGHTS)
    print(scores(load_trained(), committed_samples("test"), "segmentation"))


if __name__ == "__main__":
    main()
