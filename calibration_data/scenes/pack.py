"""Compose the scenes that are kept here, ``train.npz`` and ``test.npz``, and their manifest.

Run ``python -m calibration_data.scenes.pack``; a few seconds.
"""

from __future__ import annotations

from pathlib import Path

from calibration_data.files import write
from calibration_data.scenes.compose import CLASSES, compose_all
from pipeline.core import Preprocessing, TensorSpec

SCENES = Path(__file__).parent
KEPT = {"train": 400, "test": 300}
PREPROCESSING = Preprocessing(scale=1 / 255, mean=(0.45,), std=(0.25,))
IMAGE = TensorSpec(name="image", shape=(1, 96, 96))


def main() -> None:
    """Write the files."""
    about = {
        "name": "Scenes of garments",
        "source": "composed by calibration_data/scenes/compose.py from ../fashion_mnist/train.npz and test.npz",
        "licence": "MIT, as Fashion-MNIST (2017 Zalando SE); the grounds are computed",
        "selection": f"train.npz: scenes 0 to {KEPT['train'] - 1} of those that the models were trained on; "
        f"test.npz: scenes 0 to {KEPT['test'] - 1} of Fashion-MNIST's test images",
        "classes": list(CLASSES),
    }
    write(SCENES, about, {name: compose_all(name, range(count)).arrays() for name, count in KEPT.items()})


if __name__ == "__main__":
    main()
