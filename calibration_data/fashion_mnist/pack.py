"""Pack Fashion-MNIST's IDX files, from Debian's ``dataset-fashion-mnist``, into the npz files of this folder.

Run ``python -m calibration_data.fashion_mnist.pack`` once; it also writes the manifest.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
TRAINING_IMAGES = 16_000


def read_idx(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An IDX file of unsigned bytes (http://yann.lecun.com/exdb/mnist/): magic, big-endian sizes, then the values."""
    with gzip.open(path) as file:
        content = file.read()
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def read_debian(split: str, folder: Path = DEBIAN) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    """``images (N, 28, 28) uint8`` and ``labels (N,) uint8`` of the ``train`` or ``t10k`` split."""
    return {
        "images": read_idx(folder / f"{split}-images-idx3-ubyte.gz"),
        "labels": read_idx(folder / f"{split}-labels-idx1-ubyte.gz"),
    }


def main() -> None:
    """Write ``train.npz`` (the first 16,000 of 60,000 images), ``test.npz`` (all 10,000) and ``manifest.json``."""
    files = {}
    for name, split, count in (("train", "train", TRAINING_IMAGES), ("test", "t10k", None)):
        arrays = {key: array[:count] for key, array in read_debian(split).items()}
        path = HERE / f"{name}.npz"
        np.savez_compressed(path, images=arrays["images"], labels=arrays["labels"])
        files[path.name] = {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size_bytes": path.stat().st_size,
            "arrays": {key: {"shape": list(array.shape), "dtype": str(array.dtype)} for key, array in arrays.items()},
        }
    manifest = {
        "name": "Fashion-MNIST",
        "source": "https://github.com/zalandoresearch/fashion-mnist (Debian package dataset-fashion-mnist)",
        "licence": "MIT",
        "copyright": "2017 Zalando SE, https://tech.zalando.com",
        "citation": "Xiao, Rasul, Vollgraf 2017, https://arxiv.org/abs/1708.07747",
        "selection": f"train.npz: the first {TRAINING_IMAGES} of 60,000 training images; test.npz: all 10,000",
        "classes": list(CLASSES),
        "files": files,
    }
    (HERE / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
