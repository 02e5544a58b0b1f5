"""Train the harder networks in FP32 on all 60,000 training images, from Debian's ``dataset-fashion-mnist``.

Run ``python -m calibration_data.fashion_mnist.harder.train [NAME …]``; about 6 minutes each on one core. Writes
``NAME.safetensors`` and its entry in ``models.json``, with the top-1 accuracy on the 10,000 test images, which nothing
else uses.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

from torch import nn

from calibration_data.fashion_mnist.harder.network import NETWORKS
from calibration_data.fashion_mnist.train import IMAGE, cross_entropy, samples
from calibration_data.training import train, trained
from pipeline.models.capture import count_macs, count_parameters
from pipeline.recipe import Augmentation, TrainingConfig
from pipeline.tasks.evaluation import evaluate

HERE = Path(__file__).parent
TRAINING = TrainingConfig(
    epochs=8, batch_size=128, learning_rate=0.25, weight_decay=1e-4, augment=Augmentation(horizontal_flip=True)
)


def load_trained(name: str) -> nn.Module:
    """A trained network of `NETWORKS`, in eval mode."""
    return trained(NETWORKS[name], HERE / f"{name}.safetensors")


def train_and_describe(name: str) -> None:
    """Train, save and describe one network."""
    with tempfile.TemporaryDirectory() as scratch:
        images, test = samples("train", Path(scratch)), samples("t10k", Path(scratch))
    path = HERE / f"{name}.safetensors"
    train(NETWORKS[name], cross_entropy, images, TRAINING, path)
    model = load_trained(name)
    description = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "size_bytes": path.stat().st_size,
        "parameters": count_parameters(model),
        "macs": count_macs(model, (IMAGE,)),
        "top1": evaluate(model, test)["top1"],
    }
    describe(name, description)
    print(name, description, flush=True)


def describe(name: str, description: dict[str, object]) -> None:
    """Put a network's entry into ``models.json``, which also says where all of them come from."""
    path = HERE / "models.json"
    models = json.loads(path.read_text())["models"] if path.exists() else {}
    manifest = {
        "source": "made by this repository: calibration_data/fashion_mnist/harder/train.py, seed 0",
        "command": "python -m calibration_data.fashion_mnist.harder.train",
        "training_data": "all 60,000 training images of Fashion-MNIST (MIT licence, Zalando SE)",
        "licence": "Apache-2.0",
        "metric": "top-1 on the 10,000 test images of Fashion-MNIST",
        "models": {**models, name: description},
    }
    path.write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    for each in sys.argv[1:] or NETWORKS:
        train_and_describe(each)
