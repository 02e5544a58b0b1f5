"""Core ML itself, through coremltools, on macOS."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.recipe import CoremlConfig
from pipeline.target import Lowered
from targets.coreml.sdk import coremltools, quiet

if TYPE_CHECKING:
    from pipeline.target import Array


class CoremlSession:
    """A package loaded by Core ML."""

    metrics_source: Literal["measured", "reference"] = "measured"

    def __init__(self, lowered: Lowered, config: CoremlConfig) -> None:
        ct = coremltools()
        with quiet():
            self._model = ct.models.MLModel(
                str(lowered.path), compute_units=ct.ComputeUnit[config.compute_units.upper()]
            )
        self._lowered = lowered
        self._batch_sizes = config.batch_sizes if lowered.batch_size is None else (lowered.batch_size,)
        self.runtime = f"Core ML on macOS {platform.mac_ver()[0]}"
        self.device = f"{platform.processor() or platform.machine()}, compute units {config.compute_units}"

    def run(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """See `pipeline.target.Session.run`; a batch is cut into the sizes that the model takes."""
        parts = []
        start = 0
        for size in chunks(len(inputs[0]), self._batch_sizes):
            part = {
                spec.name: array[start : start + size].astype(
                    np.float32 if spec.dtype.startswith("float") else np.int32
                )
                for spec, array in zip(self._lowered.inputs, inputs, strict=True)
            }
            outputs = self._model.predict(part)
            parts.append([np.asarray(outputs[name]) for name in self._lowered.outputs])
            start += size
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def chunks(count: int, sizes: tuple[int, ...]) -> list[int]:
    """Batch sizes that add up to ``count``, the largest first.

    Raises:
        ValueError: No combination, taken greedily, adds up.

    >>> chunks(70, (1, 32))
    [32, 32, 1, 1, 1, 1, 1, 1]
    """
    taken = []
    for size in sorted(sizes, reverse=True):
        whole, count = divmod(count, size)
        taken += [size] * whole
    if count:
        raise ValueError(f"{count} samples are left over: the model takes batches of {sorted(sizes)}")
    return taken
