"""Sets of 4x4 images, opened as a recipe names them."""

from pathlib import Path

import numpy as np

from pipeline.core import Preprocessing, TensorSpec
from pipeline.data.open import open_samples
from pipeline.data.samples import SampleSet
from pipeline.data.source import DataSource

GREY = (TensorSpec(name="image", shape=(1, 4, 4)),)
COLOUR = (TensorSpec(name="image", shape=(3, 4, 4)),)


def npz(folder: Path, **arrays: np.ndarray) -> DataSource:
    np.savez(folder / "set.npz", **arrays)
    return DataSource(npz=folder / "set.npz")


def open_set(source: DataSource, inputs: tuple[TensorSpec, ...] = GREY, **preprocessing: object) -> SampleSet:
    return open_samples(source, inputs, Preprocessing(**preprocessing), name="test")
