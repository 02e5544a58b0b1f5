"""Train the denoising demo's checkpoint in FP32.

Run ``python -m calibration_data.denoise.train``; about 8 minutes on one core. Writes ``model.safetensors`` and prints
the peak signal-to-noise ratio on the test images, which nothing else uses.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from calibration_data.denoise.network import denoiser
from calibration_data.denoise.pack import HERE, SIDE, pairs
from calibration_data.training import in_memory, scores, stored, train, trained
from pipeline.core import Preprocessing, TensorSpec
from pipeline.data.labels import numbers
from pipeline.data.places import OTHER_IMAGE
from pipeline.data.samples import Batch, SampleSet
from pipeline.recipe import TrainingConfig

WEIGHTS = Path(__file__).parent / "model.safetensors"
TRAINING_IMAGES = 8000
PREPROCESSING = Preprocessing(scale=1 / 255)
IMAGE = TensorSpec(name="image", shape=(1, SIDE, SIDE))
FORM = numbers((1, SIDE, SIDE), OTHER_IMAGE)
TRAINING = TrainingConfig(
    epochs=7, batch_size=64, optimizer="adamw", learning_rate=0.004, weight_decay=0.001, ema=0.99, warmup_ratio=0.1
)


def absolute_error(module: nn.Module, batch: Batch) -> Tensor:
    """The mean over pixels, in grey values."""
    assert batch.labels is not None
    return 255 * functional.l1_loss(module(*batch.inputs), batch.labels)


def committed_samples(name: str) -> SampleSet:
    """The images that are kept: ``train`` or ``test``."""
    return stored(HERE / f"{name}.npz", IMAGE, PREPROCESSING, FORM, inputs=["noisy"], labels="clean")


def load_trained() -> nn.Module:
    """The trained network, in eval mode."""
    return trained(denoiser, WEIGHTS)


def main() -> None:
    """Train, save, and report the accuracy."""
    arrays = pairs("train", range(1000, 1000 + TRAINING_IMAGES))
    samples = in_memory(arrays, IMAGE, PREPROCESSING, FORM, inputs=["noisy"], labels="clean")
    train(denoiser, absolute_error, samples, TRAINING, WEIGHTS)
    print(scores(load_trained(), committed_samples("test"), "image"))


if __name__ == "__main__":
    main()
