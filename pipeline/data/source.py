"""What a recipe writes to name a set of samples. Imports no torch: a recipe must be read in an instant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from pipeline.core import PositiveInt, Setting


class DataSource(Setting):
    """One set of samples: exactly one of ``npz``, ``folder`` and ``factory``."""

    npz: Path | None = Field(None, description="compressed or plain NumPy archive")
    folder: Path | None = Field(None, description="image folder with one subfolder per class")
    factory: str | None = Field(None, pattern=r"^[\w.]+:[\w.]+$", description="module:callable -> torch Dataset")
    kwargs: dict[str, Any] = {}
    inputs: tuple[str, ...] = Field(("images",), description="arrays in the npz, one per model input")
    labels: str | None = Field("labels", description="array in the npz; null, or absent, means unlabelled")
    limit: PositiveInt | None = Field(None, description="use this many samples, evenly spaced over the set")

    @model_validator(mode="after")
    def _exactly_one_source(self) -> DataSource:
        if sum(source is not None for source in (self.npz, self.folder, self.factory)) != 1:
            raise ValueError("name exactly one of npz, folder and factory")
        return self
