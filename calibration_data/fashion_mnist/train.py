"""Train the demo's checkpoint in FP32 on all 60,000 training images, from Debian's ``dataset-fashion-mnist``.

Run ``python -m calibration_data.fashion_mnist.train``; about 18 minutes on 2 cores. Writes ``model.safetensors`` and
prints the top-1 accuracy on the 10,000 test images, which nothing else uses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from calibration_data.fashion_mnist.network import resnet
from calibration_data.fashion_mnist.pack import read_debian
from calibration_data.training import train, trained
from pipeline.core import Preprocessing, TensorSpec
from pipeline.data.npz import NpzSource
from pipeline.data.open import from_source
from pipeline.data.samples import Batch, SampleSet
from pipeline.recipe import Augmentation, TrainingConfig
from pipeline.tasks.evaluation import evaluate

HERE = Path(__file__).parent
TRAINING = TrainingConfig(
    epochs=9, batch_size=128, learning_rate=0.15, weight_decay=5e-4, augment=Augmentation(horizontal_flip=True, shift=2)
)
PREPROCESSING = Preprocessing(scale=1 / 255, mean=(0.286,), std=(0.353,))
IMAGE = TensorSpec(name="image", shape=(1, 28, 28))


def cross_entropy(module: nn.Module, batch: Batch) -> Tensor:
    """Softmax cross entropy with labels smoothed by 0.05 (https://arxiv.org/abs/1512.00567)."""
    assert batch.labels is not None
    return functional.cross_entropy(module(*batch.inputs), batch.labels, label_smoothing=0.05)


def samples(split: str, scratch: Path) -> SampleSet:
    """All images of a split of the Debian package."""
    path = scratch / f"{split}.npz"
    arrays = read_debian(split)
    np.savez(path, images=arrays["images"], labels=arrays["labels"])
    return from_source(NpzSource(path, ("images",), "labels"), (IMAGE,), PREPROCESSING, name=split)


def committed_samples(name: str) -> SampleSet:
    """The part of a split that this folder keeps: ``train`` (16,000 images) or ``test`` (all 10,000)."""
    return from_source(NpzSource(HERE / f"{name}.npz", ("images",), "labels"), (IMAGE,), PREPROCESSING, name=name)


def load_trained() -> nn.Module:
    """The trained network, in eval mode."""
    return trained(resnet, HERE / "model.safetensors")


def main() -> None:
    """Train, save, and report the accuracy."""
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        images, test = samples("train", Path(scratch)), samples("t10k", Path(scratch))
    train(resnet, cross_entropy, images, TRAINING, HERE / "model.safetensors")
    print(f"top-1 on {len(test)} test images: {evaluate(load_trained(), test)['top1']:.4f}")


if __name__ == "__main__":
    main()
