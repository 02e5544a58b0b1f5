"""Make the pairs of noisy and clean images that are kept here, ``train.npz`` and ``test.npz``, and their manifest.

Run ``python -m calibration_data.denoise.pack``; a few seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from calibration_data.files import write
from calibration_data.scenes.compose import SIZE, compose_all

HERE = Path(__file__).parent
KEPT = {"train": (1000, 400), "test": (1000, 200)}
"""The first scene, and how many: not those that the detector's and the segmenter's files show."""
SIDE = 64
LEAST_NOISE, MOST_NOISE = 8, 40
"""Standard deviation of the noise, in grey values from 0 to 255."""


def pairs(split: str, numbers: Iterable[int]) -> dict[str, np.ndarray[Any, Any]]:
    """A part of each scene: ``noisy`` and ``clean``, ``(N, 64, 64)``.

    ``clean`` is in [0, 1], as the network's output is, in half precision.
    """
    numbers = list(numbers)
    scenes = compose_all(split, numbers).images
    noisy, clean = [], []
    for image, number in zip(scenes, numbers, strict=True):
        random = np.random.default_rng([ord(split[1]), number])
        top, left = random.integers(SIZE - SIDE + 1, size=2)
        part = image[top : top + SIDE, left : left + SIDE]
        noise = random.normal(0, random.uniform(LEAST_NOISE, MOST_NOISE), part.shape)
        clean.append(part)
        noisy.append(np.clip(part + noise, 0, 255).round().astype(np.uint8))
    return {"noisy": np.stack(noisy), "clean": (np.stack(clean) / 255).astype(np.float16)}


def main() -> None:
    """Write the files."""
    about = {
        "name": "Scenes of garments with noise",
        "source": "parts of scenes of calibration_data/scenes/compose.py, with Gaussian noise of standard deviation "
        f"{LEAST_NOISE} to {MOST_NOISE} (of 255)",
        "licence": "MIT, as Fashion-MNIST (2017 Zalando SE); the grounds and the noise are computed",
        "selection": "; ".join(
            f"{name}.npz: scenes {first} to {first + count - 1} of Fashion-MNIST's {name} images"
            for name, (first, count) in KEPT.items()
        ),
    }
    write(HERE, about, {name: pairs(name, range(first, first + count)) for name, (first, count) in KEPT.items()})


if __name__ == "__main__":
    main()
